// Signing in and out, for the operator and for a tenant's admin: which tokens are refused, and where a token must not
// be.
import { api, env, walk } from "./browser.mjs";

const views = ["Overview", "Users", "Config", "Tenants", "Payments", "Try it", "Health"];

async function wantViews(t, want) {
  await t.choices().first().waitFor();
  t.equal((await t.choices().allInnerTexts()).map((text) => text.trim()), want, "the navigation");
}

// wantNowhere checks that the page has stored nothing of what opens it.
async function wantNowhere(t, token) {
  const stored = await t.page.evaluate(() => JSON.stringify([
    { ...localStorage }, { ...sessionStorage }, document.cookie, location.href, history.state, window.name,
  ]));
  const databases = await t.page.evaluate(async () => (await indexedDB.databases()).length);
  const cookies = await t.page.context().cookies();
  t.equal([stored.includes(token), databases, cookies], [false, 0, []], `the token in ${stored}`);
}

// form: a password manager knows the fields.
async function form(t) {
  await t.goto();
  await t.button("Sign in").waitFor();
  for (const [label, type, autocomplete] of [
    ["Tenant", "text", "username"], ["Token", "password", "current-password"],
  ]) {
    const got = await t.field(label).evaluate((field) => [field.type, field.autocomplete, field.form !== null]);
    t.equal(got, [type, autocomplete, true], `the field ${label}`);
  }
  await t.check("form");
}

// unsent: a token that no header can carry is not sent, and neither is an empty one.
async function unsent(t) {
  for (const token of ["tök€n", "a\u0000b", "\u{1F511}", "a\u2028b", "a b", "  "]) {
    const before = t.requests.length;
    await t.goto();
    await t.signIn("", token);
    await t.alert().waitFor();
    const text = await t.alert().innerText();
    t.equal(/TypeError|Failed to|ISO-8859|ByteString/.test(text), false, `the sentence ${text}`);
    t.equal(t.requests.slice(before).filter((request) => !/ \/admin($|\/page\/)/.test(request)), [], "requests");
  }
}

// refused: others get the server's sentence, with the ID of the request.
async function refused(t) {
  for (const [tenant, token, path] of [
    ["", "wrong", "/admin/tenants"], ["", env.tenantToken, "/admin/tenants"],
    [env.tenant, "adm_00000000-0000-4000-8000-000000000000", `/${env.tenant}/admin/config`],
    ["nobody", "wrong", "/nobody/admin/config"],
  ]) {
    const { body } = await api("GET", path, undefined, token);
    const response = t.page.waitForResponse((r) => r.status() >= 400);
    await t.goto();
    await t.signIn(tenant, token);
    const text = await t.alert().innerText();
    for (const part of [body.error, (await response).headers()["x-request-id"]]) {
      if (!text.includes(part)) throw new Error(`${tenant || "the operator"} with ${token}: got ${text}, want ${part}`);
    }
  }
  await t.check("refused");
  await wantNowhere(t, "adm_");
}

// operator: white space around a token is cut, and a second click while the first is served does nothing.
async function operator(t) {
  await t.goto();
  await t.field("Token").fill(` \t ${env.operator}\u00a0 `);
  const before = t.requests.length;
  await t.button("Sign in").dblclick();
  await wantViews(t, views);
  await t.settled();
  const sent = t.requests.slice(before);
  t.equal(sent.length, new Set(sent).size, `requests of a double click: ${sent}`);
  await wantNowhere(t, env.operator);
  await t.choose(env.tenant);
  for (const view of views) {
    await t.open(view);
    t.equal(await t.page.getByLabel("Tenant", { exact: true }).inputValue(), env.tenant, `the tenant in ${view}`);
  }
  await wantNowhere(t, env.operator);
  await t.button("Sign out").click();
  await t.signedOut();
  t.equal((await t.page.locator("body").innerText()).includes(env.tenant), false, "what was shown is still there");
  await t.page.goBack().catch(() => undefined);
  await t.goto();
  await t.signedOut();
}

// admin: a tenant's admin sees the tenant alone. A reload needs the token again.
async function admin(t) {
  await t.signIn(env.tenant, ` ${env.tenantToken} `);
  await wantViews(t, views.filter((view) => view !== "Tenants" && view !== "Health"));
  t.equal(await t.field("Tenant", t.page.locator("header")).count(), 0, "choices of a tenant");
  const before = t.requests.length;
  for (const view of ["Users", "Config", "Payments", "Try it", "Overview"]) await t.open(view);
  const others = t.requests.slice(before).filter((request) => / \/admin\/(?!page\/)/.test(request));
  t.equal(others, [], "requests of the operator's routes");
  await wantNowhere(t, env.tenantToken);
  await t.page.reload();
  await t.signedOut();

  // The operator may name a tenant, too.
  await t.signIn(env.tenant, env.operator);
  await wantViews(t, views);
  t.equal(await t.field("Tenant", t.page.locator("header")).inputValue(), env.tenant, "the tenant that was named");
  await t.button("Sign out").click();
  await t.signedOut();
}

await walk(async (t) => {
  for (const part of [form, unsent, refused, operator, admin]) await part(t);
}, [400, 401]);
