// The operator makes tenants from templates, opens one, and deletes one by entering its name.
import { api, env, walk } from "./browser.mjs";

const made = `${env.tenant}-made`;

async function exists(tenant) {
  return (await api("GET", "/admin/tenants")).body.tenants.includes(tenant);
}

await walk(async (t) => {
  await t.enter();
  await t.open("Tenants");
  await t.button("New tenant").click();
  t.equal(await t.field("Tenant ID").evaluate((field) => field === document.activeElement), true, "focus in Tenant ID");

  // Refused, with the server's sentence and without losing what was entered.
  await t.field("Tenant ID").fill("no/such");
  await t.button("Create").click();
  await t.sees(t.alert("Request ID"));
  t.equal(await t.field("Tenant ID").inputValue(), "no/such", "Tenant ID");
  await t.check("refused");

  // A double click creates it once, with the default template.
  await t.field("Tenant ID").fill(` ${made} `);
  const requests = t.requests.length;
  await t.button("Create").dblclick();
  await t.sees(t.status(`The tenant ${made} was created.`));
  await t.settled();
  t.equal(t.requests.slice(requests).filter((request) => request === "POST /admin/tenants").length, 1, "requests");
  t.equal((await api("GET", `/${made}/admin/config`)).body.config.user_groups.anonymous.tokens, 1000, "the template");
  await t.check("created");

  // It is chosen: the next view shows it. A copy of the present tenant's config is the same to the byte.
  t.equal(await t.page.getByLabel("Tenant", { exact: true }).inputValue(), made, "the chosen tenant");
  await t.choose(env.tenant);
  const copy = await t.field("Template").locator("option").filter({ hasText: `copy of the config of ${env.tenant}` }).innerText();
  await t.field("Tenant ID").fill(`${made}-2`);
  await t.field("Template").selectOption(copy);
  await t.button("Create").click();
  await t.sees(t.status(`The tenant ${made}-2 was created.`));
  t.equal((await api("GET", `/${made}-2/admin/config`)).text, (await api("GET", `/${env.tenant}/admin/config`)).text, "copy");

  // Every template is a config that the server takes.
  for (const [i, template] of (await t.field("Template").locator("option").allInnerTexts()).entries()) {
    await t.field("Tenant ID").fill(`${made}-t${i}`);
    await t.field("Template").selectOption({ index: i });
    await t.button("Create").click();
    await t.sees(t.status(`The tenant ${made}-t${i} was created.`));
    t.equal(await t.status().locator("p").count(), 1, `sentences about ${template}`);
  }

  // One that exists already.
  await t.field("Tenant ID").fill(made);
  await t.button("Create").click();
  await t.sees(t.alert("Tenant already exists"));

  // Opening one shows its usage, and chooses it in the header.
  await t.button(`Open ${made}-2`).click();
  await t.heading("Overview").waitFor();
  t.equal(await t.field("Tenant", t.page.locator("header")).inputValue(), `${made}-2`, "the chosen tenant");

  // Deleting asks for the name. Escape deletes nothing.
  await t.open("Tenants");
  await t.button(`Delete ${made}-2`).click();
  await t.check("dialog");
  await t.page.keyboard.press("Escape");
  await t.misses(t.dialog());
  await t.button(`Delete ${made}-2`).click();
  await t.field("Name", t.dialog()).fill(made);
  await t.button("Delete", t.dialog()).click();
  await t.sees(t.dialog().getByRole("alert"));
  t.equal(await exists(`${made}-2`), true, "the tenant is still there");
  await t.field("Name", t.dialog()).fill(`${made}-2`);
  await t.button("Delete", t.dialog()).click();
  await t.sees(t.status(`The tenant ${made}-2 was deleted.`));
  t.equal(await exists(`${made}-2`), false, "the tenant exists");
  t.equal(await t.field("Tenant", t.page.locator("header")).locator(`option[value="${made}-2"]`).count(), 0, "in the header");
}, [400, 409]);
