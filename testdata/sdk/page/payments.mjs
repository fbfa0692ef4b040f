// What users have paid is listed, newest first; what nobody got is marked in words.
import { api, env, walk } from "./browser.mjs";

await walk(async (t) => {
  const { payments } = (await api("GET", `/${env.tenant}/admin/payments`)).body;
  for (const [tenant, token] of [["", env.operator], [env.tenant, env.tenantToken]]) {
    await t.enter(tenant, token);
    await t.open("Payments");
    const rows = t.page.getByRole("row");
    await t.until("a row for each payment", async () => await rows.count() === payments.length + 1);
    for (const [i, payment] of payments.entries()) {
      const row = rows.nth(i + 1);
      const text = await row.innerText();
      for (const want of [payment.userId, payment.stripeId, Math.abs(payment.tokens).toLocaleString("en")]) {
        t.equal(text.includes(want), true, `${want} in ${text}`);
      }
      t.equal(text.includes("unassigned"), payment.unassigned === true, `unassigned in ${text}`);
      const at = await row.locator("time").evaluate((time) => [time.dateTime, time.title]);
      t.equal(at, [payment.at, payment.at.replace("T", " ").replace("Z", " UTC")], "time");
    }
    t.equal(payments.filter(({ unassigned }) => unassigned).length, 1, "unassigned payments");
    t.equal(payments.filter(({ kind }) => kind === "refund").length, 1, "refunds");
  }
  await t.check("payments");
});
