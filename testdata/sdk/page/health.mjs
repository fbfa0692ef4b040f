// The operator sees how the process and its Redis are, as GET /admin/status says it.
import { api, walk } from "./browser.mjs";

await walk(async (t) => {
  await t.enter();
  await t.open("Health");
  const { body: status } = await api("GET", "/admin/status");
  const text = await t.page.locator("main:visible").innerText();
  for (const want of [status.version, "Streams", "Realtime sessions", "Drains", `of ${status.connections.max.toLocaleString("en")}`,
    status.redis.nodes[0].address, "one server", "master", "● up",
    ...Object.keys(status.pools).map((name) => name.replaceAll("_", " "))]) {
    t.equal(text.includes(want), true, `${want} in ${text}`);
  }
  await t.check("health");

  // It looks again by itself, and no more once another view is open.
  const looks = () => t.requests.filter((request) => request === "GET /admin/status").length;
  const first = looks();
  await t.until("another look", () => looks() > first);
  await t.open("Payments");
  t.equal(await t.page.getByText("Pools").count(), 0, "pools in another view");
});
