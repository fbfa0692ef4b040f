// Overview: what a tenant has used, over three periods, in parts of three kinds, as the API says it.
import { api, env, named, walk } from "./browser.mjs";

const markup = `<img src=x onerror="window.hacked=1">`;
const number = (n) => n.toLocaleString("en", { maximumFractionDigits: 1 });
const dayOf = (ago) => new Date(Date.now() - ago * 24 * 3600 * 1000).toISOString().slice(0, 10);
const dateOf = (day) => new Date(day).toLocaleDateString("en", { dateStyle: "medium", timeZone: "UTC" });
const sum = (values) => values.reduce((a, b) => a + b, 0);

// usage returns the last n days of a tenant.
async function usage(tenant, n) {
  const { body } = await api("GET", `/${tenant}/admin/usage?from=${dayOf(n - 1)}&to=${dayOf(0)}&by=model&by=user&limit=100`);
  return body.days;
}

// rows returns what a table shows: its heads and its rows.
async function rows(t, caption) {
  const table = t.page.getByRole("table", { name: caption });
  await table.waitFor();
  return table.locator("tr").evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.innerText.trim())));
}

// wantFigures waits for the sums of the days.
async function wantFigures(t, days) {
  for (const [name, of] of [
    ["Tokens charged", (day) => day.tokensCharged], ["Tokens granted", (day) => day.tokensGranted],
    ["Requests", (day) => day.requests], ["Cache hits", (day) => day.cacheHits],
    ["Refused requests", (day) => sum(Object.values(day.refused))],
  ]) {
    const want = number(sum(days.map(of)));
    await t.until(`${name} ${want}`, async () => (await t.button(name).locator(".figure").innerText()) === want);
  }
}

// wantChart compares the table, and the bars, with what the API says of the days in parts of a kind.
async function wantChart(t, days, what, member, kind) {
  const got = await rows(t, `${what} by ${kind.toLowerCase()}`);
  const names = [...new Set(days.flatMap((day) => Object.keys(day[`by${kind}`])))];
  for (const name of names) {
    const column = got[0].indexOf(name);
    if (column < 0) throw new Error(`the table by ${kind} has ${got[0]}, want ${name}`);
    const want = days.map((day) => number(day[`by${kind}`][name]?.[member] ?? 0));
    t.equal(got.slice(2).map((row) => row[column]).reverse(), want, `${name} by day`);
  }
  t.equal(got.slice(2).map((row) => row[0]).reverse(), days.map((day) => dateOf(day.day)), "the days");
  const want = days.map((day) => day[member]);
  t.equal(got.slice(1).map((row) => row[1]), [number(sum(want)), ...want.map(number).reverse()], what);
  const { bars, tall } = await t.page.locator(".plot svg > g:not(.lines)").evaluateAll((groups) => ({
    bars: groups.length,
    tall: groups.map((group) => [...group.querySelectorAll("rect:not(.back)")]
      .reduce((height, bar) => height + bar.height.baseVal.value, 0)),
  }));
  t.equal(bars, days.length, "days of the chart");
  t.equal(tall.indexOf(Math.max(...tall)), want.indexOf(Math.max(...want)), "the highest bar");
  t.equal(tall.map((height) => height > 0), want.map((n) => n > 0), "the days that have a bar");
}

await walk(async (t) => {
  await t.enter();
  await t.heading("Overview").waitFor();
  const asked = () => t.requests.filter((request) => request.includes(`/${env.tenant}/admin/usage?`)).length;
  const pressed = async () => (await t.page.locator("[aria-pressed=true]").allInnerTexts()).map((text) => text.trim().split("\n")[0]);
  let days = await usage(env.tenant, 30);
  await wantFigures(t, days);
  t.equal(await pressed(), ["30 days", "Tokens charged", "Model"], "what is chosen first");
  await wantChart(t, days, "Tokens charged", "tokensCharged", "Model");
  await t.check("start");

  // A shorter period is there at once. What was read is not read again.
  let before = asked();
  await t.button("7 days").click();
  await wantFigures(t, days.slice(-7));
  await wantChart(t, days.slice(-7), "Tokens charged", "tokensCharged", "Model");
  t.equal(asked(), before, "requests for a shorter period");

  // What cannot be read leaves what is shown, and is read when it is asked for again.
  const failing = (url) => url.pathname.endsWith("/admin/usage");
  await t.page.route(failing, (route) => route.fulfill({ status: 503, headers: { "X-Request-Id": "request-1" },
    json: { error: "Service unavailable" } }));
  await t.button("90 days").click();
  for (const text of ["Service unavailable", "request-1"]) await t.alert(text).waitFor();
  await wantFigures(t, days.slice(-7));
  await t.page.unroute(failing);
  before = asked();
  await t.button("90 days").dblclick();
  days = await usage(env.tenant, 90);
  await wantFigures(t, days);
  t.equal(asked(), before + 1, "requests for a longer period");
  before = asked();
  for (const kind of ["Endpoint", "Group", "Model"]) {
    await t.button(kind).click();
    await wantChart(t, days, "Tokens charged", "tokensCharged", kind);
  }
  await t.check("90-days");
  await t.button("Requests").click();
  await t.button("Group").click();
  await wantChart(t, days, "Requests", "requests", "Group");
  await t.button("30 days").click();
  await wantChart(t, days.slice(-30), "Requests", "requests", "Group");
  for (const [name, caption, of] of [
    ["Tokens granted", "Tokens granted", (day) => [day.tokensGranted]], ["Cache hits", "Cache hits", (day) => [day.cacheHits]],
    ["Refused requests", "Refused requests by reason, by day", ({ refused: { balance, rate, key, group } }) => [balance, rate, key, group]],
  ]) {
    await t.button(name).click();
    await t.misses(t.button("Group"));
    const got = (await rows(t, caption)).slice(1).map((row) => sum(row.slice(2, 2 + of(days[0]).length).map((text) => Number(text.replace(",", "")))));
    const want = days.slice(-30).map((day) => sum(of(day)));
    t.equal(got, [sum(want), ...want.reverse()], name);
  }
  await t.screenshot("refused");
  await t.button("Tokens charged").click();
  t.equal(asked(), before, "requests for what was read");

  // The values of a day, with the pointer and with the keys.
  const legend = t.page.locator("figure");
  const day = days.at(-10);
  const wantDay = async (day, what) => {
    for (const text of [dateOf(day.day), number(day.tokensCharged), ...Object.values(day.byGroup).map((g) => number(g.tokensCharged))]) {
      await t.until(`${text} with ${what}`, async () => (await legend.locator(".row, .legend").allInnerTexts()).join(" ").includes(text));
    }
  };
  const plot = t.page.getByRole("slider");
  const { x, y, width, height } = await plot.boundingBox();
  await t.page.mouse.move(x + width * 20.5 / 30, y + height / 2);
  await wantDay(day, "the pointer");
  await t.page.mouse.move(x, y - 40);
  await t.until("the sums again", async () => (await legend.innerText()).includes("–"));
  await plot.focus();
  await wantDay(days.at(-10), "the focus"); // where the pointer was
  await t.page.keyboard.press("End");
  await wantDay(days.at(-1), "End");
  for (let i = 0; i < 9; i++) await t.page.keyboard.press("ArrowLeft");
  await wantDay(day, "the keys");
  const said = await plot.getAttribute("aria-valuetext");
  for (const [name, { tokensCharged }] of Object.entries(day.byGroup)) {
    if (!said.includes(`${name}: ${number(tokensCharged)}`)) throw new Error(`a screen reader says ${said}`);
  }
  await t.screenshot("day");

  // Users, and what was refused.
  const users = new Map();
  for (const { userId, requests, tokensCharged } of days.slice(-30).flatMap((day) => day.byUser)) {
    const [r, c] = users.get(userId) ?? [0, 0];
    users.set(userId, [r + requests, c + tokensCharged]);
  }
  t.equal((await rows(t, "Users who were charged most")).slice(1).map((row) => row.slice(0, 3)),
    [...users].sort((a, b) => b[1][1] - a[1][1]).map(([id, sums]) => [id ?? "Anonymous visitors", ...sums.map(number)]), "the users");
  const reasons = await rows(t, /^Refused requests by reason$/);
  for (const reason of ["balance", "rate", "key", "group"]) {
    const row = reasons.find(([name]) => name.toLowerCase().startsWith(reason));
    t.equal(row?.at(-1), number(sum(days.slice(-30).map((day) => day.refused[reason]))), `refused: ${reason}`);
  }

  // What was chosen is still chosen after another view. The user is one click away.
  before = asked();
  await t.page.getByRole("link", { name: "alice", exact: true }).click();
  await t.heading("Users").first().waitFor();
  t.equal(await t.field("User or key").inputValue(), "alice", "who is looked for");
  await t.sees("laptop"); // the label of a key
  await t.open("Overview");
  t.equal(await pressed(), ["30 days", "Tokens charged", "Group"], "what is chosen after another view");
  await wantFigures(t, days.slice(-30));
  t.equal(asked() <= before + 1, true, "requests of the view that comes again");

  await hostile(t);
  await unused(t);
  await t.button("Sign out").click();
  await t.signIn(env.tenant, env.tenantToken);
  await wantFigures(t, days.slice(-30));
}, [503]);

// hostile looks at a tenant whose names are markup and the like, and more than there are colours.
async function hostile(t) {
  const tenant = `${env.tenant}-hostile`;
  const groups = ["__proto__", "constructor", markup, `"quoted"`, "other", "g".repeat(64), "a", "b", "c", "d"];
  const config = `{"user_groups":{${groups.map((name) => `${JSON.stringify(name)}:{"tokens":9000000}`).join()}}}`;
  await api("POST", "/admin/tenants", `{"tenantId":${JSON.stringify(tenant)},"config":${config}}`);
  const ids = ["__proto__", markup, "other", "u".repeat(120), "a b/?&#%+", "è"];
  for (const [i, group] of groups.entries()) {
    const { body } = await api("POST", `/${tenant}/admin/keys`, { userId: ids[i % ids.length], group });
    t.equal((await api("POST", `/${tenant}/tokens/consume`, { tokens: 1000 * (groups.length - i) }, body.apiKey)).status, 200, `a charge of ${group}`);
  }
  await t.until("the usage", async () => sum((await usage(tenant, 1)).map((day) => day.requests)) === groups.length);
  await t.goto();
  await t.signIn("", env.operator);
  await t.choices().first().waitFor();
  await t.choose(tenant);
  await t.button("Group").click();
  const got = await rows(t, "Tokens charged by group");
  const large = groups.filter((name) => name !== "other").slice(0, 7);
  t.equal(got[0].slice(2, 10), [...large, "Other"], "the series");
  t.equal(got.at(2).slice(1, 10), [55000, 10000, 9000, 8000, 7000, 5000, 4000, 3000, 9000].map(number), "the values of today");
  for (const id of ids.filter((id) => id !== "other")) {
    const link = t.page.getByRole("link", { name: id, exact: true });
    t.equal(await link.getAttribute("href"), `#users?${new URLSearchParams({ user: id })}`, "the address of a user");
  }
  await t.check("hostile");
}

// unused looks at a tenant that has used nothing: a sentence says what comes first.
async function unused(t) {
  const tenant = `${env.tenant}-unused`;
  await api("POST", "/admin/tenants", { tenantId: tenant, config: { user_groups: { free: { tokens: 10 } } } });
  await t.goto();
  await t.signIn("", env.operator);
  await t.choices().first().waitFor();
  await t.choose(tenant);
  await t.heading(named("Nothing was used")).waitFor();
  t.equal(await t.page.getByRole("slider").count(), 0, "charts of nothing");
  await t.check("unused");
  await t.sees("To begin, add an endpoint in Config");
  for (const view of ["Config", "Users", "Try it", "Overview"]) { // no other link has such a name
    await t.page.getByRole("link", { name: view }).click();
    await t.heading(view).waitFor();
  }
}
