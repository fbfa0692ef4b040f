// The config as a text: saved byte for byte, refused with the places of what is wrong, in conflict with another admin's.
import { api, env, walk } from "./browser.mjs";

await walk(async (t) => {
  await t.enter();
  await t.open("Config");
  await t.check("config");
  await t.button("History").click();
  await t.button("Difference").first().click();
  await t.check("history");
}, [400, 412, 500, 503]);
