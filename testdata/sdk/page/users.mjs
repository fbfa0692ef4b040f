// Users and keys: everything that an admin does with them, seen on the page and through the API.
import { api, env, walk } from "./browser.mjs";

const keys = `/${env.tenant}/admin/keys`;
const whole = /user_[0-9a-f-]{36}/;
const get = async (key) => (await api("GET", `${keys}/${key}`)).body;
const list = async (user) => (await api("GET", `${keys}?userId=${encodeURIComponent(user)}`)).body.keys;
const issue = async (body) => (await api("POST", keys, body)).body.apiKey;
const consume = async (key) => (await api("POST", `/${env.tenant}/tokens/consume`, undefined, key)).status;
const mask = (key) => `${key.slice(0, 5)}…${key.slice(-4)}`;
const dayOf = (ago) => new Date(Date.now() - ago * 24 * 3600 * 1000).toISOString().slice(0, 10);

async function search(t, text) {
  await t.field("User or key").fill(text);
  await t.field("User or key").press("Enter");
  await t.settled();
}

// card finds what is shown of a key.
const card = (t, key) => t.page.getByRole("region", { name: mask(key) });
const fact = (card, term) => card.locator("dt", { hasText: new RegExp(`^${term}$`) }).locator("xpath=following-sibling::dd[1]");
const users = (t) => t.page.locator(".users button").allInnerTexts();

async function wantFact(t, card, term, want) {
  await t.until(`${term}: ${want}`, async () => (await fact(card, term).innerText()) === want);
}

// act opens the dialog of an action, fills its fields and presses the button with the same verb.
async function act(t, key, verb, values = {}, within = card(t, key)) {
  await t.button(verb, within).click();
  for (const [label, value] of Object.entries(values)) await fill(t, t.field(label, t.dialog()), value);
  await t.button(verb, t.dialog()).click();
}

async function fill(t, field, value) {
  if (await field.evaluate((node) => node.tagName === "SELECT")) await field.selectOption(value);
  else if (value === true) await field.check();
  else await field.fill(value);
}

async function says(t, text) {
  await t.status(text).waitFor();
  await t.misses(t.dialog());
}

async function finds(t) {
  await t.open("Users");
  t.equal(await users(t), ["alice", "bob", "malformed"], "the users from the start");
  for (const [text, names, heading] of [
    ["  ali \t", [], "Keys of alice"], ["bob", [], "Keys of bob"], [env.alice, [], "Key of alice"],
    [`  ${env.bob}\u00a0`, [], "Key of bob"], ["", ["alice", "bob", "malformed"], "All users"],
  ]) {
    await search(t, text);
    await t.heading(heading).waitFor();
    t.equal(await users(t), names, `the users for ${JSON.stringify(text)}`);
  }
  await t.button("alice").click();
  await t.heading("Keys of alice").waitFor();
  t.equal(await t.heading("Keys of alice").evaluate((node) => node === document.activeElement), true, "the focus");

  // An exact match among several is shown at once, with the others.
  await issue({ userId: "alice2", group: "free" });
  await search(t, "alice");
  await card(t, env.alice).waitFor();
  t.equal(await users(t), ["alice", "alice2"], "the users who begin with alice");
  await search(t, "al");
  t.equal(await t.page.locator(".key").count(), 0, "keys of several users");
  await search(t, "nobody");
  await t.sees("No user has a key.");

  for (const key of ["user_00000000-0000-4000-8000-000000000000", `user_${env.alice.slice(5).toUpperCase()}`]) {
    const response = t.page.waitForResponse((r) => r.url().includes("/admin/keys/"));
    await search(t, key);
    const text = await t.alert().innerText();
    for (const part of ["Not found", (await response).headers()["x-request-id"]]) {
      if (!text.includes(part)) throw new Error(`${key}: got ${text}, want ${part}`);
    }
    t.equal(await t.field("User or key").inputValue(), key, "what was looked for");
    t.equal(await t.heading(/Users that|Key/).count(), 0, "what was found before");
  }
  await t.check("unknown");

  const { body: { apiKey, tokensLeft } } = await api("POST", `/${env.tenant}/auth/anonymous`);
  await search(t, apiKey);
  await t.heading("Key of a visitor").waitFor();
  await wantFact(t, card(t, apiKey), "User", "A visitor");
  await act(t, apiKey, "Rotate");
  await t.heading("New key").waitFor();
  const [made] = /temp_[0-9a-f-]{36}/.exec(await t.page.locator("#view").innerText());
  await card(t, made).waitFor();
  t.equal([(await api("GET", `${keys}/${apiKey}`)).status, (await get(made)).tokensLeft], [404, tokensLeft], "the visitor's keys");
  await act(t, made, "Revoke");
  await says(t, "is revoked");
}

// links opens the address by which other views show a user.
async function links(t) {
  await t.open("Overview");
  await t.page.evaluate(() => { location.hash = "#users?user=bob"; });
  await t.heading("Keys of bob").waitFor();
  t.equal(await t.field("User or key").inputValue(), "bob", "what was looked for");
}

// A response that comes late does not replace that of a later search.
async function races(t) {
  let release;
  const held = new Promise((resolve) => { release = resolve; });
  await t.page.route(/prefix=bo/, async (route) => {
    await held;
    await route.continue().catch(() => undefined); // it was aborted
  });
  await t.field("User or key").fill("bo");
  await t.field("User or key").press("Enter");
  await t.field("User or key").fill("ali");
  await t.field("User or key").press("Enter");
  await t.button("alice2").waitFor();
  release();
  await t.settled();
  t.equal(await users(t), ["alice", "alice2"], "the users of the later search");
  await t.page.unroute(/prefix=bo/);
}

async function creates(t) {
  await t.button("New key").click();
  await t.check("new");
  t.equal(await t.field("Group").locator("option").allInnerTexts(), ["anonymous", "free", "pro"], "the groups");
  for (const [values, want] of [
    [{ Label: "x".repeat(65) }, "label must be 1 to 64 bytes"], [{ Tokens: "5.000" }, "Tokens must be a whole number"],
    [{ Tokens: "1e3" }, "Tokens must be a whole number"], [{ Tokens: "-1" }, "tokens must be a whole number ≥ 0"],
  ]) {
    const all = { "User ID": " carol ", Group: "pro", Label: "phone", Tokens: "2,500", Expires: "86400", ...values };
    for (const [label, value] of Object.entries(all)) await fill(t, t.field(label), value);
    await t.button("Create key").click();
    await t.alert(want).waitFor();
    for (const [label, value] of Object.entries(all)) t.equal(await t.field(label).inputValue(), value, label);
  }
  await t.field("Tokens").fill("2,500");
  await t.button("Create key").dblclick();
  await t.status("Created with 2,500 tokens in the group pro.").waitFor();
  const [key] = whole.exec(await t.page.locator(".once").innerText());
  await t.button("Copy").click();
  await t.until("the key is copied", async () => await t.clipboard() === key);
  await card(t, key).waitFor();
  await t.check("created");
  const made = await list("carol");
  t.equal(made.map(({ apiKey, group, label, tokensLeft }) => [apiKey, group, label, tokensLeft]), [[key, "pro", "phone", 2500]], "keys");
  t.equal(Math.round((new Date(made[0].expiresAt) - new Date(made[0].createdAt)) / 1000), 86400, "its life in seconds");

  // It is shown once. Another one gets the group's tokens.
  await search(t, "carol");
  t.equal(whole.test(await t.page.locator("#view").evaluate((main) => main.outerHTML)), false, "a whole key is in the page");
  await t.button("New key").click();
  t.equal(await t.field("Group").inputValue(), "free", "the first group that is not for visitors");
  await t.field("User ID").fill("dave");
  await t.button("Create key").click();
  await t.status("Created with 1,000 tokens").waitFor();
  const [dave] = await list("dave");
  t.equal([dave.group, dave.expiresAt, dave.tokensLeft], ["free", null, 1000], "the key of dave");
}

async function shows(t) {
  await search(t, env.alice);
  const shown = card(t, env.alice);
  await t.misses(t.page.getByText(env.alice));
  await t.button("Show", shown).click();
  await t.sees(env.alice, shown);
  await t.button("Copy", shown).click();
  await t.until("the key is copied", async () => await t.clipboard() === env.alice);
  await t.button("Hide", shown).click();
  await t.misses(t.page.getByText(env.alice));
  for (const [term, want] of [["User", "alice"], ["Group", "pro"], ["Expires", "Never"], ["Rate limit", "None"], ["Models", "All"],
    ["At a time", "Any number of requests"], ["Refill", "Up to 50,000 tokens, on the first of each month at 00:00 UTC"]]) {
    await wantFact(t, shown, term, want);
  }
  const { createdAt, refillsAt } = await get(env.alice);
  for (const [term, at] of [["Created", createdAt], ["Next refill", refillsAt]]) {
    t.equal(await fact(shown, term).locator("time").getAttribute("datetime"), at, term);
  }

  // Its own usage, as the API says it.
  for (const n of [7, 30, 90]) {
    await t.button(`${n} days`, shown).click();
    await t.settled();
    const { body: { days } } = await api("GET", `${keys}/${env.alice}/usage?from=${dayOf(n - 1)}&to=${dayOf(0)}`);
    const table = shown.getByRole("table", { name: "Charged by model" });
    await t.until(`${n} rows`, async () => await table.locator("tbody tr").count() === n + 1);
    const row = (await table.locator("tbody tr").nth(1).innerText()).split(/\s*\t\s*/);
    t.equal(row[1], days.at(-1).tokensCharged.toLocaleString("en"), "charged today");
    t.equal(await shown.locator("[aria-pressed=true]").count(), 1, "periods that are chosen");
  }
  await t.check("key");
}

async function topsUp(t) {
  const { tokensLeft: before } = await get(env.alice);
  const sent = t.page.waitForRequest((request) => request.method() === "PATCH");
  await act(t, env.alice, "Top up", { Tokens: "5,000", Reason: " a gift " });
  await says(t, `Added 5,000 tokens: ${(before + 5000).toLocaleString("en")} are left.`);
  t.equal((await sent).postDataJSON(), { addTokens: 5000, reason: "a gift" }, "what was sent");
  await act(t, env.alice, "Top up", { Tokens: "−6,000" });
  await says(t, `Took back 6,000 tokens: ${(before - 1000).toLocaleString("en")} are left.`);

  // Too much is refused, and what was entered stays; with the choice it takes what is there.
  await act(t, env.alice, "Top up", { Tokens: "-900000", Reason: "fraud" });
  await t.alert("addTokens must leave a balance from 0").waitFor();
  t.equal([await t.field("Tokens").inputValue(), await t.field("Reason").inputValue()], ["-900000", "fraud"], "what was entered");
  t.equal((await get(env.alice)).tokensLeft, before - 1000, "the balance");
  await t.field("If fewer are left", t.dialog()).check();
  await t.button("Top up", t.dialog()).click();
  await says(t, `Took back ${(before - 1000).toLocaleString("en")} tokens: 0 are left.`);
  await t.until("a balance of 0", async () => (await card(t, env.alice).locator(".figure").innerText()) === "0");

  // What was done although its response was lost is not done again.
  await t.page.route("**/admin/keys/*", async (route) => {
    await route.fetch({ url: env.url + new URL(route.request().url()).pathname }); // Node.js does not know tollgate.test
    await route.fulfill({ status: 503, json: { error: "It may have been done" } });
  }, { times: 1 });
  await act(t, env.alice, "Top up", { Tokens: "70" });
  await t.alert("It may have been done").waitFor();
  await t.button("Top up", t.dialog()).dblclick();
  await says(t, "Added 70 tokens: 70 are left.");
  t.equal((await get(env.alice)).tokensLeft, 70, "the balance");
  await act(t, env.alice, "Top up", { Tokens: "70" });
  await says(t, "Added 70 tokens: 140 are left.");
}

async function changes(t) {
  const shown = card(t, env.alice);
  await t.button("Disable", shown).click();
  await t.dialog().waitFor();
  await t.check("disable");
  await t.page.keyboard.press("Escape");
  t.equal(await consume(env.alice), 200, "a charge before it is disabled");
  await act(t, env.alice, "Disable", { Reason: "abuse" });
  await says(t, "The key is disabled.");
  await t.sees(shown.getByText("Disabled", { exact: true }));
  t.equal(await consume(env.alice), 403, "a charge");
  await t.button("Enable", shown).click();
  await says(t, "The key is enabled.");
  t.equal(await consume(env.alice), 200, "a charge");

  const label = `"><script>hacked=1</script>${"é".repeat(18)}`; // 63 bytes
  await act(t, env.alice, "Label", { Label: label });
  await says(t, label);
  t.equal((await get(env.alice)).label, label, "the label");
  await act(t, env.alice, "Label", { Label: " " });
  await says(t, "The label is removed.");
  t.equal((await get(env.alice)).label, undefined, "the label");

  await act(t, env.alice, "Move", { Group: "free", Reason: "downgrade" });
  await says(t, "The key is in the group free now.");
  await wantFact(t, shown, "Rate limit", "20 requests per minute");
  await wantFact(t, shown, "Refill", "None");
  t.equal((await get(env.alice)).group, "free", "the group");
}

async function rotates(t) {
  await search(t, "dave");
  const [{ apiKey: old }] = await list("dave");
  await act(t, old, "Rotate", { Grace: "604801" });
  await t.alert("graceSeconds must be").waitFor();
  await t.field("Grace").fill("0");
  await t.button("Rotate", t.dialog()).click();
  await says(t, `${mask(old)} no longer works.`);
  const [next] = whole.exec(await t.page.locator(".once").innerText());
  await card(t, next).waitFor();
  t.equal([await consume(old), await consume(next)], [401, 200], "charges with the old and the new key");

  await act(t, next, "Rotate", { Grace: "600" });
  await says(t, `${mask(next)} works for 600 seconds more.`);
  const [third] = whole.exec(await t.page.locator(".once").innerText());
  await t.check("rotated");
  t.equal([await consume(next), await consume(third)], [200, 200], "charges with both keys");
  await wantFact(t, card(t, next), "Shares with", `${mask(third)}: balance, group, limits and usage`);

  // A change of one is shown at the other, too. A key that is pasted says with which it shares.
  await act(t, third, "Top up", { Tokens: "3" });
  await says(t, "Added 3 tokens: 1,000 are left.");
  t.equal(await t.page.locator(".key .figure").allInnerTexts(), ["1,000", "1,000"], "the balances");
  await search(t, next);
  await wantFact(t, card(t, next), "Shares with", `${mask(third)}: balance, group, limits and usage`);
  await t.button("All keys of this user").click();
  await card(t, third).waitFor();
  await act(t, next, "Label", { Label: "the old one" });
  await says(t, "The label is the old one now.");

  // With it goes the one that shares its balance.
  await t.button("Revoke", card(t, third)).click();
  await t.check("revoke");
  t.equal(await consume(third), 200, "a charge before it is revoked");
  await t.field("Reason", t.dialog()).fill("leaked & gone");
  const sent = t.page.waitForRequest((request) => request.method() === "DELETE");
  await t.button("Revoke", t.dialog()).click();
  await says(t, `${mask(third)} is revoked.`);
  t.equal(new URL((await sent).url()).search, "?reason=leaked+%26+gone", "the reason");
  t.equal([await t.page.locator(".key").count(), await list("dave")], [0, []], "keys of dave");
}

// Keys that are odd: of a group that is gone, malformed in Redis, of a user who signs in, and too many for a page.
async function oddities(t) {
  const { body: { config } } = await api("GET", `/${env.tenant}/admin/config`);
  const groups = { ...config.user_groups, odd: { tokens: 5, rate_limit: 3, rate_limit_window: 7200, max_concurrent: 1,
    models: ["gpt-*", ...Array.from({ length: 30 }, (_, i) => `m${i}`)], refill: { tokens: 9, every: 3600 } } };
  await api("PUT", `/${env.tenant}/admin/config`, { config: { ...config, user_groups: groups } });
  const key = await issue({ userId: "eve", group: "odd" });
  await search(t, "eve");
  for (const [term, want] of [["Rate limit", "3 requests per 2 hours"], ["At a time", "1 request to the gateway"],
    ["Refill", "Up to 9 tokens, every hour since the key was created"]]) await wantFact(t, card(t, key), term, want);
  const models = await fact(card(t, key), "Models").innerText();
  t.equal([models.startsWith("gpt-*, m0, "), models.endsWith(", m29")], [true, true], models);
  await api("PUT", `/${env.tenant}/admin/config`, { config });
  await search(t, "eve");
  await t.sees("odd is not in the config any more.", card(t, key));
  await t.check("gone");
  await act(t, key, "Move", { Group: "free" });
  await wantFact(t, card(t, key), "Group", "free");

  // What cannot be read is said, and the rest is shown.
  for (const [part, status, sentence] of [["config", 500, "since the config is broken"], ["usage", 429, "Too many requests"]]) {
    const refuse = (route) => route.fulfill({ status, json: { error: sentence } });
    await t.page.route(new RegExp(`/admin/(keys/.*/)?${part}`), refuse, { times: 1 });
    await search(t, "eve");
    await t.sees(sentence, card(t, key));
  }
  const short = await issue({ userId: "frank", group: "free", expiresIn: 2 });
  await search(t, "frank");
  await card(t, short).waitFor();
  await t.until("a key that has expired", async () => (await get(short)).error);
  await act(t, short, "Disable");
  await t.alert("Not found").waitFor();
  await t.page.keyboard.press("Escape");
  await t.page.locator("dialog").waitFor({ state: "detached" }); // else the focus returns while the next thing is typed

  const [{ apiKey: malformed }] = await list("malformed");
  await search(t, "malformed");
  await t.sees("malformed, so it is refused", card(t, malformed));
  await t.check("malformed");
  await act(t, malformed, "Disable");
  await says(t, "The key is disabled.");
  await act(t, malformed, "Revoke");
  await says(t, "is revoked");
  t.equal(await list("malformed"), [], "malformed keys");

  const google = await issue({ userId: "google:110169484474386276334", group: "free" });
  await search(t, "google:");
  await act(t, google, "Revoke", { Forget: true });
  await says(t, "is revoked");

  for (let i = 0; i < 23; i++) await issue({ userId: "many", group: "free", label: `no ${i}` });
  await search(t, "many");
  t.equal(await t.page.locator(".key").count(), 20, "keys of the first page");
  await t.button("More").click();
  await t.settled();
  t.equal([await t.page.locator(".key").count(), await t.button("More").count()], [23, 0], "keys of both pages");
  for (let i = 0; i < 55; i++) await issue({ userId: `row-${i}`, group: "free" });
  await search(t, "row-");
  await t.button("row-10").click();
  await t.heading("Keys of row-10").waitFor();
  await t.button("More").click();
  await t.button("row-9").waitFor();
  t.equal([(await users(t)).length, await t.button("More").count()], [55, 0], "users of both pages");
}

// A token that ends while a dialog is open is asked for again, and what was typed is still there.
async function comesBack(t) {
  await t.page.reload();
  await t.signIn(env.tenant, env.tenantToken);
  await t.open("Users");
  await search(t, env.bob);
  await api("DELETE", `/${env.tenant}/admin/tokens`);
  const { tokensLeft } = await get(env.bob);
  await act(t, env.bob, "Top up", { Tokens: "25", Reason: "typed before" });
  await t.button("Sign in").waitFor();
  const { body: { adminToken } } = await api("POST", `/${env.tenant}/admin/tokens`);
  await t.field("Token").fill(adminToken);
  await t.button("Sign in").click();
  t.equal([await t.field("Tokens").inputValue(), await t.field("Reason").inputValue()], ["25", "typed before"], "what was typed");
  await t.button("Top up", t.dialog()).click();
  await says(t, "Added 25 tokens");
  t.equal((await get(env.bob)).tokensLeft, tokensLeft + 25, "the balance");
}

await walk(async (t) => {
  await t.enter();
  for (const part of [finds, links, races, creates, shows, topsUp, changes, rotates, oddities, comesBack]) await part(t);
}, [400, 401, 404, 429, 500, 503]);
