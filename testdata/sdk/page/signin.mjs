// Signing in and out, for the operator and for a tenant's admin: which tokens are refused, and where a token must not be.
import { api, env, walk } from "./browser.mjs";

const views = ["Overview", "Users", "Config", "Tenants", "Payments", "Try it", "Health"];

async function wantViews(t, want) {
  await t.choices().first().waitFor();
  t.equal((await t.choices().allInnerTexts()).map((text) => text.trim()), want, "the navigation");
}

// wantNowhere checks that the page has stored nothing of what opens it.
async function wantNowhere(t, token) {
  const stored = await t.page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, history.state, name]));
  const databases = await t.page.evaluate(async () => (await indexedDB.databases()).length);
  const cookies = await t.page.context().cookies();
  t.equal([stored.includes(token), databases, cookies], [false, 0, []], `the token in ${stored}`);
}

// wantForm waits for the form without a token in it.
async function wantForm(t) {
  await t.button("Sign in").waitFor();
  t.equal(await t.field("Token").inputValue(), "", "the field of the token");
  t.equal(await t.choices().count(), 0, "views without a token");
}

// refused signs in with what is refused, and returns what the page says.
async function refused(t, tenant, token) {
  await t.goto();
  await t.signIn(tenant, token);
  await t.alert().waitFor();
  await t.button("Sign in").waitFor();
  return t.alert().innerText();
}

async function newToken() {
  return (await api("POST", `/${env.tenant}/admin/tokens`)).body.adminToken;
}

await walk(async (t) => {
  await t.goto();
  await t.button("Sign in").waitFor();
  for (const [label, type, autocomplete] of [["Tenant", "text", "username"], ["Token", "password", "current-password"]]) {
    const got = await t.field(label).evaluate((field) => [field.type, field.autocomplete, field.form !== null]);
    t.equal(got, [type, autocomplete, true], `the field ${label}`);
  }
  await t.check("form");

  // A token that no header can carry is not sent, and neither is an empty one.
  for (const token of ["tök€n", "a\u0000b", "\u{1F511}", "a\u2028b", "a b", "  "]) {
    const before = t.requests.length;
    await t.goto();
    await t.signIn("", token);
    await t.until(`a sentence about ${JSON.stringify(token)}`, () => t.page.evaluate(() =>
      document.querySelector("[role=alert]")?.innerText.trim() || document.querySelector(":invalid")?.validationMessage));
    t.equal(/TypeError|Failed to|ISO-8859|ByteString/.test(await t.page.locator("body").innerText()), false, "a browser's words");
    t.equal(t.requests.slice(before).filter((request) => !/ \/admin($|\/page\/)|favicon/.test(request)), [], "requests");
  }

  // Others get the server's sentence, with the ID of the request.
  for (const [tenant, token, path] of [
    ["", "wrong", "/admin/tenants"], ["", env.tenantToken, "/admin/tenants"],
    [env.tenant, "adm_00000000-0000-4000-8000-000000000000", `/${env.tenant}/admin/config`], ["nobody", "wrong", "/nobody/admin/config"],
  ]) {
    const { body } = await api("GET", path, undefined, token);
    const response = t.page.waitForResponse((r) => r.status() >= 400);
    const text = await refused(t, tenant, token);
    for (const part of [body.error, (await response).headers()["x-request-id"]]) {
      if (!text.includes(part)) throw new Error(`${tenant || "the operator"} with ${token}: got ${text}, want ${part}`);
    }
  }
  await t.check("refused");
  await wantNowhere(t, "adm_");

  // White space around a token is cut. A second click while the first is served does nothing.
  await t.goto();
  await t.field("Token").fill(` \t ${env.operator}\u00a0 `);
  let before = t.requests.length;
  await t.button("Sign in").dblclick();
  await wantViews(t, views);
  await t.settled();
  const sent = t.requests.slice(before);
  t.equal(sent.length, new Set(sent).size, `requests of a double click: ${sent}`);
  await wantNowhere(t, env.operator);
  await t.choose(env.tenant);
  for (const view of views) {
    await t.open(view);
    t.equal(await t.field("Tenant", t.page.locator("header")).inputValue(), env.tenant, `the tenant in ${view}`);
  }
  await wantNowhere(t, env.operator);
  await t.button("Sign out").click();
  await wantForm(t);
  t.equal((await t.page.locator("body").innerText()).includes(env.tenant), false, "what was shown is still there");
  await t.page.goBack().catch(() => undefined);
  await t.goto();
  await wantForm(t);

  // A reload needs the token again.
  await t.signIn(env.tenant, ` ${env.tenantToken} `);
  await wantViews(t, views.filter((view) => view !== "Tenants" && view !== "Health"));
  t.equal(await t.field("Tenant", t.page.locator("header")).count(), 0, "choices of a tenant");
  before = t.requests.length;
  for (const view of ["Users", "Config", "Payments", "Try it", "Overview"]) await t.open(view);
  t.equal(t.requests.slice(before).filter((request) => / \/admin\/(?!page\/)/.test(request)), [], "requests of the operator's routes");
  await wantNowhere(t, env.tenantToken);
  await t.page.reload();
  await wantForm(t);

  // The operator may name a tenant, too.
  await t.signIn(env.tenant, env.operator);
  await wantViews(t, views);
  t.equal(await t.field("Tenant", t.page.locator("header")).inputValue(), env.tenant, "the tenant that was named");
  await t.button("Sign out").click();
  await wantForm(t);

  // What was typed stays when the token ends meanwhile.
  await t.signIn(env.tenant, env.tenantToken);
  await t.open("Users");
  await t.button("New key").click();
  await t.field("User ID").fill("typed before");
  await t.field("Group").selectOption("free");
  await api("DELETE", `/${env.tenant}/admin/tokens`);
  await t.button("Create key").click();
  await wantForm(t);
  await t.check("ended");
  await t.signIn(env.tenant, await newToken());
  await t.field("User ID").waitFor();
  t.equal([await t.field("User ID").inputValue(), await t.field("Group").inputValue()], ["typed before", "free"], "what was typed");
  t.equal((await api("GET", `/${env.tenant}/admin/keys?userId=typed%20before`)).body.keys, [], "keys before they are wanted");
  await t.button("Create key").click();
  await t.sees(/user_[0-9a-f-]{36}/);
  t.equal((await api("GET", `/${env.tenant}/admin/keys?userId=typed%20before`)).body.keys.length, 1, "keys");

  // It stays in a dialog.
  await t.field("User or key").fill(env.alice);
  await t.page.keyboard.press("Enter");
  await t.button("Top up").click();
  await t.field("Tokens", t.dialog()).fill("5");
  await t.field("Reason", t.dialog()).fill("typed before");
  await api("DELETE", `/${env.tenant}/admin/tokens`);
  await t.button("Top up", t.dialog()).click();
  await wantForm(t);
  t.equal(await t.dialog().count(), 0, "dialogs over the form");
  await t.signIn(env.tenant, await newToken());
  await t.dialog().waitFor();
  t.equal(await t.field("Reason", t.dialog()).inputValue(), "typed before", "what was typed");
  const { body: { tokensLeft } } = await api("GET", `/${env.tenant}/admin/keys/${env.alice}`);
  await t.button("Top up", t.dialog()).click();
  await t.misses(t.dialog());
  t.equal((await api("GET", `/${env.tenant}/admin/keys/${env.alice}`)).body.tokensLeft, tokensLeft + 5, "the balance");

  // So it does in the editor, where a second sign-in is one, too.
  await t.open("Config");
  const editor = t.field("Config");
  await t.until("a config", async () => (await editor.inputValue()).includes("anonymous"));
  const typed = (await editor.inputValue()).replace(/^\{/, '{\n  "typed": 12345678901234567890,');
  await editor.fill(typed);
  await api("DELETE", `/${env.tenant}/admin/tokens`);
  await t.button("Save").click();
  await wantForm(t);
  const requests = t.requests.length;
  await t.signIn(env.tenant, await newToken());
  await editor.waitFor();
  t.equal(await editor.inputValue(), typed, "what was typed");
  t.equal(t.requests.slice(requests).filter((request) => !request.startsWith("GET ")), [], "changes that were not wanted again");
  await t.button("Save").click();
  await t.until("the config is saved", async () =>
    /"typed": ?12345678901234567890/.test((await api("GET", `/${env.tenant}/admin/config`)).text));
  await t.button("Sign out").click();

  // What the view of somebody else would still ask, it does not ask with the token of another.
  await t.page.clock.install();
  await t.enter();
  await t.open("Health");
  const status = "**/admin/status";
  await t.page.route(status, (route) => route.fulfill({ status: 401, json: { error: "Unauthorized" } }));
  await t.page.clock.fastForward(10_000);
  await wantForm(t);
  await t.page.unroute(status);
  await t.signIn(env.tenant, await newToken());
  await wantViews(t, views.filter((view) => view !== "Tenants" && view !== "Health"));
  await t.settled();
  const seen = t.requests.length;
  await t.page.clock.fastForward(10_000);
  await t.open("Payments");
  t.equal(t.requests.slice(seen).filter((request) => request.includes("/admin/status")), [], "requests of Health");
}, [400, 401]);
