// The config as a text: saved byte for byte, refused with the places of what is wrong, in conflict with another admin's,
// compared with its past and restored.
import { api, env, walk } from "./browser.mjs";

const path = `/${env.tenant}/admin/config`;

// What JSON.parse would lose or change.
const delicate = String.raw`"x":{"big":12345678901234567890,"price":1.10,"exp":1e3,"neg":-0.0E+2,"t\u0061b":"\u0009\/","twice":1,"twice":{"a":2},` +
  String.raw`"__proto__":{"polluted":1},"2":1,"1":2,"":null,"\ud83d\ude00":"\"<img src=x onerror=hacked=1>","\u2028":" {[ ,: ]} "}`;

// configText returns a config with another number of tokens, compact as the server keeps it.
const configText = (tokens, more = "") => `{"user_groups":{"anonymous":{"tokens":${tokens}},` +
  `"__proto__":{"tokens":7},"<b onclick='hacked=2'>.\\"x\\"":{"tokens":8}}${more},${delicate}}`;

const saved = async (path) => (await api("GET", path)).text.replace(/^\{"config":([^]*)\}\n$/, "$1");
const put = async (t, config, where = path) => t.equal((await api("PUT", where, `{"config":${config}}`)).status, 200, "status of PUT");

// wantSaved checks what the server has.
async function wantSaved(t, want, what, where = path) {
  t.equal(await saved(where), want, what);
}

// enter opens the view anew.
async function enter(t, tenant = env.tenant) {
  await t.enter();
  await t.choose(tenant);
  await t.open("Config");
  return t.field("Config");
}

// typed replaces a piece of the text as a person would: by selecting and typing it.
async function type(t, old, now) {
  const area = t.field("Config");
  const at = (await area.inputValue()).indexOf(old);
  if (at < 0) throw new Error(`the text has no ${old}: ${await area.inputValue()}`);
  await area.evaluate((area, [at, length]) => { area.focus(); area.setSelectionRange(at, at + length); }, [at, old.length]);
  await t.page.keyboard.insertText(now);
}

// selection returns what is selected in the text, and whether it can be seen.
function selection(t) {
  return t.field("Config").evaluate((area) => {
    const line = area.value.slice(0, area.selectionStart).split("\n").length - 1;
    const at = line * area.scrollHeight / area.value.split("\n").length - area.scrollTop;
    return [area.value.slice(area.selectionStart, area.selectionEnd), area === document.activeElement && at >= 0 && at < area.clientHeight];
  });
}

async function saves(t) {
  const before = t.requests.length;
  await t.button("Save").first().dblclick();
  await t.settled();
  await t.button("Save").first().dispatchEvent("click", { detail: 2 }); // a second click that comes late
  await t.settled();
  t.equal(t.requests.slice(before).filter((request) => request.startsWith("PUT")).length, 1, "requests of a double click");
}

async function byHand(t) {
  await put(t, configText(10));
  const area = await enter(t);
  const text = await area.inputValue();
  t.equal([text.includes('\n    "anonymous": {\n      "tokens": 10\n    },\n'), text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1")],
    [true, configText(10)], "the text");
  t.equal(await area.evaluate((area) => [area.spellcheck, area.classList.contains("code")]), [false, true], "the text area");
  await type(t, '"tokens": 10', '"tokens": 1.1e1');
  await t.sees("Not saved yet");
  await saves(t);
  await t.sees(t.status("Saved."));
  await t.misses(t.page.getByText("Not saved yet"));
  await wantSaved(t, configText("1.1e1"), "saved by hand");
  await t.button(/^Edit.*__proto__/).click();
  await t.field("Tokens", t.dialog()).fill("9");
  await t.dialog().locator("[type=submit]").click();
  await t.misses(t.dialog());
  await wantSaved(t, configText("1.1e1").replace('"tokens":7', '"tokens":9'), "saved by a form");
  await type(t, '"tokens": 9', '"tokens": 7');
  await type(t, '{', ' \n{\t ');
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  await t.settled();
  await wantSaved(t, configText("1.1e1"), "saved with white space");
  t.equal((await api("GET", `${path}/history`)).body.versions.length, 5, "versions");

  // A config that is large because of its layout is sent without that.
  const large = `{"list":[${Array.from({ length: 5000 }, (_, i) => `[[[[[{"deep":${i}}]]]]]`).join(",")}],"text":"${"\\u0061".repeat(100_000)}"}`;
  await put(t, large);
  const laid = await (await enter(t)).inputValue();
  t.equal([laid.length > 1 << 20, large.length < 1 << 20], [true, true], "large");
  await type(t, '"deep": 0', '"deep": 0.0');
  await saves(t);
  await t.sees(t.status("Saved."));
  await wantSaved(t, large.replace('"deep":0}', '"deep":0.0}'), "large");
}

async function refusals(t) {
  await put(t, configText(20));
  await enter(t);
  const before = t.requests.length;
  // Text that is not JSON is not sent. The cursor goes to the mistake.
  for (const [old, now, want, at] of [
    ['"tokens": 20', '"tokens": 020', "line 4, column 18", '20\n'], ['"tokens": 020', '"tokens": 20 20', "line 4, column 20", "20\n"],
    ['"tokens": 20 20', '"tokens": 20', "", ""],
  ]) {
    await type(t, old, now);
    if (!want) continue;
    await t.button("Save").first().click();
    await t.sees(t.alert(want));
    const rest = await t.field("Config").evaluate((area) => area === document.activeElement && area.value.slice(area.selectionStart));
    t.equal(rest.slice(0, at.length), at, "at the cursor");
  }
  const whole = await t.field("Config").inputValue();
  for (const [text, want] of [['{}, "x":1', "line 1, column 3"], ['{"a":1}}, {"b":{', "line 1, column 8"], ["", "unexpected end"], ["{} {}", "column 4"]]) {
    await t.field("Config").fill(text);
    await t.button("Save").first().click();
    await t.sees(t.alert(want));
    t.equal(await t.field("Config").inputValue(), text, "what was typed");
  }
  t.equal(t.requests.slice(before), [], "requests with what is not JSON");

  // What the server refuses has a button for each path.
  await t.field("Config").fill(whole);
  await type(t, '"tokens": 20', '"tokens": -20, "rate_limit": 1');
  await type(t, '"tokens": 8', '"tokens": "eight"');
  const long = "é".repeat(40);
  await type(t, '"__proto__": {\n      "tokens": 7', `"__proto__": {\n      "tokens": 7, "models": ["a", 5]\n    },\n    "${long}": {`);
  await t.button("Save").first().click();
  await t.sees(t.alert("Invalid config: user_groups.anonymous.tokens must be a whole number ≥ 0"));
  await t.sees(t.alert("Request ID: "));
  const lines = await t.alert().locator("li").allInnerTexts();
  t.equal(lines.some((line) => line.includes(`Invalid config: user_groups["<b onclick='hacked=2'>.\\"x\\""].tokens must be a whole number ≥ 0`)), true, `lines: ${lines}`);
  for (const [name, want] of [
    ["user_groups.anonymous.tokens", '"tokens": -20'], ["user_groups.__proto__.models[1]", "5"],
    [`user_groups["<b onclick='hacked=2'>.\\"x\\""].tokens`, '"tokens": "eight"'], [`user_groups["${"é".repeat(32)}…"]`, `"${long}": {`],
    ["user_groups.anonymous.rate_limit_window", '"anonymous": {'],
  ]) {
    await t.button(name, t.alert()).click();
    t.equal(await selection(t), [want, true], name);
  }
  await t.check("refused");
  await wantSaved(t, configText(20), "after what was refused");
  await t.choices().filter({ hasText: "Users" }).click();
  await t.button("Leave", t.dialog()).click();
  await t.field("User or key").waitFor();
}

async function warnings(t) {
  await put(t, configText(30));
  await enter(t);
  await type(t, '"user_groups"', '"corse": {}, "cors": {"allowed_orgins": []}, "user_groups"');
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  t.equal(await t.status().locator("p").count(), 2, "lines");
  await t.button("cors.allowed_orgins", t.status()).click();
  t.equal(await selection(t), ['"allowed_orgins": [', true], "the place of a warning");
}

// Nothing typed is lost by an error or by mistake.
async function kept(t) {
  await put(t, configText(40));
  await enter(t);
  await type(t, '"tokens": 40', '"tokens": 41');
  const text = await t.field("Config").inputValue();
  const tenant = t.field("Tenant", t.page.locator("header"));
  for (const leave of [() => t.choices().filter({ hasText: "Users" }).click(), () => tenant.selectOption(`${env.tenant}-torn`)]) {
    await leave();
    await t.button("Leave", t.dialog()).waitFor();
    await t.page.keyboard.press("Escape");
    await t.misses(t.dialog());
    await t.until("the same tenant", async () => await tenant.inputValue() === env.tenant);
    t.equal(await t.field("Config").inputValue(), text, "what was typed");
  }
  // A 503 that is one, and one that came after the config was saved.
  const body = JSON.stringify({ error: "Service unavailable" });
  const refuse = (route) => route.fulfill({ status: 503, headers: { "Retry-After": "1", "X-Request-Id": "down-1" }, body });
  await t.page.route(`**${path}`, refuse);
  await t.button("Save").first().click();
  await t.sees(t.alert("Service unavailable"));
  await t.sees(t.alert("down-1"));
  t.equal([await t.field("Config").inputValue(), await saved(path)], [text, configText(40)], "after a 503");
  await t.page.unroute(`**${path}`, refuse);
  const late = async (route) => {
    const request = route.request();
    if (request.method() === "PUT") await api("PUT", path, request.postData());
    await refuse(route);
  };
  await t.page.route(`**${path}`, late);
  await t.button("Save").first().click();
  await t.sees(t.alert("Service unavailable"));
  await t.page.unroute(`**${path}`, late);
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  await wantSaved(t, configText(41), "after two 503");
  // The view that cannot be loaded can be tried again.
  await t.page.route(`**${path}`, refuse);
  await t.open("Users");
  await t.open("Config");
  await t.sees(t.alert("Service unavailable"));
  await t.page.unroute(`**${path}`, refuse);
  await t.button("Try again").click();
  await t.field("Config").waitFor();
  t.equal((await t.field("Config").inputValue()).includes('"tokens": 41'), true, "after trying again");
}

async function conflicts(t) {
  await put(t, configText(50));
  await enter(t);
  await type(t, '"tokens": 50', '"tokens": 51');
  const mine = await t.field("Config").inputValue();
  await put(t, configText(52));
  await t.button("Save").first().click();
  await t.sees(t.alert("Config has changed"));
  await t.sees(t.alert("Request ID"));
  t.equal(await t.field("Config").inputValue(), mine, "mine");
  await t.button("Compare").click();
  t.equal([await t.page.locator("del").allInnerTexts(), await t.page.locator("ins").allInnerTexts()],
    [['−       "tokens": 52'], ['+       "tokens": 51']], "the difference");
  await t.check("conflict");
  // Typing goes on, and a third change is a conflict again.
  await type(t, '"tokens": 51', '"tokens": 53');
  await put(t, configText(54));
  await t.button("Overwrite with mine").click();
  await t.sees(t.alert("Config has changed"));
  await t.settled();
  await wantSaved(t, configText(54), "after a third change");
  await t.button("Compare").click();
  t.equal(await t.page.locator("del").allInnerTexts(), ['−       "tokens": 54'], "the difference");
  await t.button("Overwrite with mine").click();
  await t.sees(t.status("Saved."));
  await t.misses(t.button("Overwrite with mine"));
  await wantSaved(t, configText(53), "mine");

  await type(t, '"tokens": 53', '"tokens": 55');
  await put(t, configText(56, ',"extra":[1.10]'));
  await t.button("Save").first().click();
  await t.button("Take theirs").click();
  await t.misses(t.button("Take theirs"));
  t.equal((await t.field("Config").inputValue()).replace(/\s+/g, ""), configText(56, ',"extra":[1.10]').replace(/\s+/g, ""), "theirs");
  await type(t, '"tokens": 56', '"tokens": 57');
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  await wantSaved(t, configText(57, ',"extra":[1.10]'), "theirs, changed");

  // A form meets a conflict, too.
  await put(t, configText(59));
  await t.button(/^Edit.*anonymous/).click();
  await t.field("Tokens", t.dialog()).fill("60");
  await t.dialog().locator("[type=submit]").click();
  await t.misses(t.dialog());
  await t.sees(t.alert("Config has changed"));
  t.equal((await t.field("Config").inputValue()).includes('"tokens": 60'), true, "the form's change");
  await wantSaved(t, configText(59), "theirs");
  await t.button("Overwrite with mine").click();
  await t.sees(t.status("Saved."));
  await wantSaved(t, configText(60, ',"extra":[1.10]'), "the form's change");
  await type(t, '"tokens": 60', '"tokens": 57');

  // The same change of both is not a conflict.
  await type(t, '"tokens": 57', '"tokens": 58');
  await put(t, configText(58, ',"extra":[1.10]'));
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  t.equal(await t.button("Take theirs").count(), 0, "conflicts");
}

async function history(t) {
  await put(t, configText(60));
  t.equal((await api("PUT", path, `{"config":${configText(61, ',"more":{"a":[1,2]}')}}`, env.tenantToken)).status, 200, "PUT by the tenant");
  await enter(t);
  await t.button("History").click();
  const versions = t.page.getByRole("listitem").filter({ has: t.button("Restore") });
  await t.sees(versions);
  const { body } = await api("GET", `${path}/history`);
  t.equal(await versions.count(), body.versions.length, "versions");
  t.equal(await versions.locator("time").evaluateAll((times) => times.map((time) => [time.dateTime, / UTC$/.test(time.title)])),
    body.versions.map(({ savedAt }) => [savedAt, true]), "times");
  const who = await versions.allInnerTexts();
  t.equal([who[0].includes(`by admin token ${body.versions[0].savedBy}`), who[1].includes("by operator")], [true, true], `by whom: ${who}`);
  await t.button("Difference", versions.first()).click();
  await t.page.locator("ins").first().waitFor();
  t.equal([await t.page.locator("del").allInnerTexts(), await t.page.locator("ins").allInnerTexts()], [['−       "tokens": 60'],
    ['+       "tokens": 61', '+   "more": {', '+     "a": [', "+       1,", "+       2", "+     ]", "+   },"]], "the difference");
  await t.check("history");
  await t.button("Difference", versions.first()).click();
  await t.misses(t.page.locator("ins"));
  await t.button("Difference", versions.last()).click();
  await t.page.locator("ins").first().waitFor();

  // Restoring asks first. Escape restores nothing.
  await t.button("Restore", versions.nth(1)).click();
  await t.page.keyboard.press("Escape");
  await t.misses(t.dialog());
  await wantSaved(t, configText(61, ',"more":{"a":[1,2]}'), "without a restore");
  await type(t, '"tokens": 61', '"tokens": 62');
  await t.button("Restore", versions.nth(1)).click();
  await t.sees("What you have changed and not saved is lost.", t.dialog());
  await t.button("Restore", t.dialog()).dblclick();
  await t.sees(t.status("Restored version"));
  await t.misses(t.dialog());
  await wantSaved(t, configText(60), "restored");
  t.equal((await t.field("Config").inputValue()).includes('"tokens": 60'), true, "the text");
  await t.until("one version more", async () => (await api("GET", `${path}/history`)).body.versions[0].etag === body.versions[1].etag);
  await type(t, '"tokens": 60', '"tokens": 63');
  await t.button("Save").first().click();
  await t.sees(t.status("Saved."));
  await wantSaved(t, configText(63), "after a restore");

  // What has come since is not replaced unseen.
  await t.settled();
  await put(t, configText(64));
  await t.button("Restore", versions.nth(1)).click();
  await t.button("Restore", t.dialog()).click();
  await t.sees("Config has changed", t.dialog());
  await wantSaved(t, configText(64), "somebody else's");
  await t.button("Restore", t.dialog()).click();
  await t.misses(t.dialog());
  await wantSaved(t, configText(60), "restored after all");
}

// A config that is broken in Redis is repaired by a restore, or by a new one.
async function broken(t) {
  await enter(t, `${env.tenant}-broken`);
  await t.sees(t.alert("Internal error"));
  await t.sees(t.alert("The config in Redis cannot be used"));
  t.equal(await t.field("Config").inputValue(), "", "the text");
  await t.button("History").click();
  await t.button("Restore").click();
  await t.check("broken");
  await t.button("Restore", t.dialog()).click();
  await t.sees(t.status("Restored version"));
  await wantSaved(t, '{"made":1.10}', "restored", `/${env.tenant}-broken/admin/config`);

  const torn = `/${env.tenant}-torn/admin/config`;
  const area = await enter(t, `${env.tenant}-torn`);
  await area.fill('{"new":1.10}');
  await t.button("History").click();
  await t.button("Restore").click();
  await put(t, '{"theirs":1}', torn); // somebody else is first
  await t.button("Restore", t.dialog()).click();
  await t.sees("Config has changed", t.dialog());
  await t.page.keyboard.press("Escape");
  await t.button("Save").first().click();
  await t.sees(t.alert("Config has changed"));
  await wantSaved(t, '{"theirs":1}', "theirs", torn);
  await t.button("Overwrite with mine").click();
  await t.sees(t.status("Saved."));
  await wantSaved(t, '{"new":1.10}', "the new one", torn);
}

// pure checks what needs no server.
async function pure(t) {
  await enter(t);
  const text = String.raw`{"a":{"b.c":[1,{"d":2}],"b":3,"b":{"e":4},"é":5,"it":6,"line\nfeed":7,"\u0001":8},"tokens":-1}`;
  const sentences = [
    ["tokens must be positive", "tokens", '"tokens":-1'], ["Invalid config: tokens must be positive", "tokens", '"tokens":-1'],
    [String.raw`a["b.c"][1].d is wrong`, String.raw`a["b.c"][1].d`, '"d":2'], [String.raw`a["b.c"][7] is wrong`, String.raw`a["b.c"][7]`, '"b.c":['],
    ["a.b.e is wrong", "a.b.e", '"e":4'], ["a.b.missing is missing", "a.b.missing", '"b":{'], ['a["é"] is wrong', 'a["é"]', '"é":5'],
    [String.raw`a["line\nfeed"]: wrong`, String.raw`a["line\nfeed"]`, String.raw`"line\nfeed":7`], [String.raw`a["\x01"] is wrong`, "", ""],
    ["it must be an object", "", ""], ["5 more members are wrong", "", ""], ["", "", ""], ["__proto__.constructor is wrong", "", ""],
  ];
  const places = await t.page.evaluate(async ([text, sentences]) => {
    const { placeOf } = await import("/admin/page/configs.js");
    return sentences.map(([sentence]) => {
      const place = placeOf(text, sentence);
      const whole = !place || place.before + place.path + place.after === sentence;
      return [sentence, whole && place ? place.path : "", place ? text.slice(place.start, place.end) : ""];
    });
  }, [text, sentences]);
  t.equal(places, sentences, "places");

  // The difference of short texts shows all lines, and as few changes as there can be: the others are a longest common
  // subsequence. That of long ones ends, and shows a part.
  const wrong = await t.page.evaluate(async () => {
    const { difference } = await import("/admin/page/diff.js");
    const linesOf = (a, b) => [...difference(a.join("\n"), b.join("\n"), "").querySelectorAll("pre > *")].map((node) => node.textContent);
    const common = (a, b) => !a.length || !b.length ? 0 : a[0] === b[0] ? 1 + common(a.slice(1), b.slice(1))
      : Math.max(common(a.slice(1), b), common(a, b.slice(1)));
    const wrong = [];
    const all = [[]];
    for (const text of all) if (text.length < 4) for (const line of "ab") all.push([...text, line]);
    for (const a of all) {
      for (const b of all) {
        const lines = linesOf(a, b);
        const side = (sign) => lines.filter((line) => line[0] === " " || line[0] === sign).map((line) => line.slice(2)).join();
        const changes = lines.filter((line) => line[0] !== " ").length;
        const right = a.join() === b.join() ? lines.length === 0
          : side("−") === a.join() && side("+") === b.join() && changes === a.length + b.length - 2 * common(a, b);
        if (!right) wrong.push([a, b, lines]);
      }
    }
    const long = Array.from({ length: 60_000 }, (_, i) => `line ${i % 977}`);
    const start = Date.now();
    const shown = [linesOf(long, long.map((line, i) => i % 100 ? line : "x")), linesOf([], long)];
    if (shown.some((lines) => lines.length !== 2000) || Date.now() - start > 20_000) wrong.push(["long", Date.now() - start, shown.map((lines) => lines.length)]);
    return wrong;
  });
  t.equal(wrong, [], "wrong differences");
}

await walk(async (t) => {
  for (const steps of [pure, byHand, refusals, warnings, kept, conflicts, history, broken]) {
    const start = Date.now();
    await steps(t);
    t.log(steps.name, Date.now() - start, "ms");
  }
}, [400, 412, 500, 503]);
