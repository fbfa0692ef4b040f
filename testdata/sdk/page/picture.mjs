// The picture of the Overview that README.md shows. It is written only if PICTURE says where:
//
//	PICTURE=docs/admin.png go test -tags integration -run 'TestIntegrationPage/picture$' .
import { env, walk } from "./browser.mjs";
import { copyFileSync, statSync } from "node:fs";

const limit = 100_000; // bytes

await walk(async (t) => {
  await t.page.setViewportSize({ width: 1200, height: 775 });
  await t.enter();
  await t.open("Overview");
  await t.sees(t.page.getByRole("main").getByRole("table"));
  await t.settled();
  const path = await t.screenshot("overview", false);
  const { size } = statSync(path);
  t.log(`${path} has ${size} bytes`);
  t.equal(size < limit, true, `${size} bytes, less than ${limit}`);
  if (env.picture) copyFileSync(path, env.picture);
});
