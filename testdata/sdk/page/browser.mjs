// What the walks in this folder have in common. A walk does on the admin page, in the system's Chromium, what a person
// does: it finds things by role and by name, fills, clicks and reads.
//
// TestIntegrationPage (page_integration_test.go) starts the program, a Redis, a provider and a Stripe, creates a tenant
// for each walk and runs them all. To run one of them: npm ci --prefix testdata/sdk, and then
//
//	go test -tags integration -run 'TestIntegrationPage/users$' -v .
//
// prints what the walk logs and where its screenshots are. Each file here that calls walk is one. If it needs what only
// Go can prepare, such as payments, the test's table says so.
//
// A walk fails if a step throws, and also if anything happens that no walk should see: a violation of the page's policy
// of content, an exception, an error on the console, a request to another origin, a dialog of the browser's own.
// Each wait ends after 10 s. The page is opened by a name that is not localhost, so it does without what browsers offer
// on HTTPS only.
import { chromium } from "playwright-core";
import axe from "axe-core";
import assert from "node:assert/strict";
import { basename, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const limit = 10_000; // milliseconds that one wait may take
const walkLimit = 90_000;
const desktop = { width: 1200, height: 750 };
const phone = { width: 360, height: 740 };

// What the test prepared. url is where the API is, and origin where the page is opened. The users alice (group pro) and
// bob (group free) of the tenant have a key each.
export const env = {
  url: process.env.TOLLGATE_URL,
  origin: process.env.TOLLGATE_URL.replace("127.0.0.1", "tollgate.test"),
  operator: process.env.OPERATOR_TOKEN,
  tenant: process.env.TENANT,
  tenantToken: process.env.TENANT_TOKEN, // opens the tenant only
  alice: process.env.KEY_ALICE,
  bob: process.env.KEY_BOB,
  provider: process.env.PROVIDER_URL, // its models answer at /v1/chat/completions, /v1/messages and /v1/embeddings
  providerKey: process.env.PROVIDER_KEY,
  picture: process.env.PICTURE, // where the picture of the README is to be written
};

const name = basename(process.argv[1], ".mjs");

// named matches a name that may be followed by more words, so that "Tenant" does not find "Tenants".
export function named(text) {
  if (text instanceof RegExp) return text;
  return new RegExp(`^\\s*${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\p{L}\\p{N}_-])`, "u");
}

// api sends a request to the API, to prepare something or to see what has come of it. body is JSON, or a string that is
// sent as it is.
export async function api(method, path, body, token = env.operator) {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  const headers = { Authorization: `Bearer ${token}` };
  if (text !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(env.url + path, { method, headers, body: text, signal: AbortSignal.timeout(limit) });
  const got = { status: response.status, headers: response.headers, text: await response.text() };
  try {
    got.body = JSON.parse(got.text);
  } catch {
    got.body = undefined; // the response has none, or one that is not JSON
  }
  return got;
}

// A Walker is a person at the page.
class Walker {
  #shots = 0;
  #open = new Set(); // requests without a response

  constructor(browser, context, page, statuses) {
    Object.assign(this, { browser, context, page, statuses });
    this.problems = []; // what no walk should see
    this.requests = []; // "METHOD /path" of all requests, oldest first
    page.on("pageerror", (error) => this.problems.push(`exception: ${error.name}: ${error.message} ${error.stack}`));
    page.on("console", (message) => this.#hear(message));
    page.on("dialog", (dialog) => {
      this.problems.push(`the browser asks: ${dialog.type()} ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => {
      const url = new URL(request.url());
      if (url.origin !== env.origin) this.problems.push(`request to another origin: ${request.url()}`);
      this.requests.push(`${request.method()} ${url.pathname}${url.search}`);
      this.#open.add(request);
    });
    for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => this.#open.delete(request));
  }

  #hear(message) {
    const text = message.text();
    if (message.type() !== "error") return;
    if (text.includes("Cross-Origin-Opener-Policy header has been ignored")) return; // it is, without HTTPS
    const status = /^Failed to load resource: the server responded with a status of (\d+)/.exec(text)?.[1];
    if (!this.statuses.includes(Number(status))) this.problems.push(`console: ${text} (${message.location().url})`);
  }

  // log prints a line that `go test -v` shows.
  log(...what) {
    console.log(`${name}:`, ...what);
  }

  // goto opens the page anew.
  async goto() {
    await this.page.goto(`${env.origin}/admin`);
  }

  // button, field and heading find what is visible, by its accessible name, in the page or in a part of it.
  button(text, within = this.page) {
    return within.getByRole("button", { name: named(text) }).filter({ visible: true });
  }

  field(label, within = this.page) {
    return within.getByLabel(named(label)).and(this.page.locator("input, select, textarea")).filter({ visible: true });
  }

  heading(text, within = this.page) {
    return within.getByRole("heading", { name: named(text) }).filter({ visible: true });
  }

  // dialog, alert and status find the one that is visible. With a text, they find the one that has it.
  dialog(text = "") {
    const dialogs = this.page.locator("dialog[open], [role=dialog], [role=alertdialog]");
    return dialogs.filter({ visible: true, hasText: text });
  }

  alert(text = "") {
    return this.page.getByRole("alert").filter({ visible: true, hasText: text });
  }

  status(text = "") {
    return this.page.getByRole("status").filter({ visible: true, hasText: text });
  }

  // choices finds the views in the navigation.
  choices() {
    const place = this.page.locator("nav, [role=tablist]");
    return place.getByRole("link").or(place.getByRole("button")).or(place.getByRole("tab")).filter({ visible: true });
  }

  // sees waits until a locator, or else a text, is there to see, and returns its locator.
  async sees(what, within = this.page) {
    const found = typeof what === "string" || what instanceof RegExp
      ? within.getByText(what).filter({ visible: true }) : what;
    await found.first().waitFor();
    return found;
  }

  // misses waits until nothing that a locator finds is there to see.
  async misses(locator) {
    await this.until(`nothing to see of ${locator}`, async () => await locator.filter({ visible: true }).count() === 0);
  }

  // until waits for a condition, which is asked again until it is true.
  async until(what, condition) {
    const end = Date.now() + limit;
    for (let last; !(last = await condition());) {
      if (Date.now() > end) throw new Error(`expected within ${limit / 1000} s: ${what}; got ${JSON.stringify(last)}`);
      await pause(20);
    }
  }

  // equal compares values.
  equal(got, want, what) {
    assert.deepEqual(got, want, `${what}: got ${JSON.stringify(got)}, want ${JSON.stringify(want)}`);
  }

  // settled waits until no request is open and nothing is marked as busy.
  async settled() {
    await this.until("no open request, nothing busy", async () => this.#open.size === 0 &&
      await this.page.locator("[aria-busy=true]").filter({ visible: true }).count() === 0);
  }

  // signIn fills the form. Without a tenant, it is the operator's.
  async signIn(tenant, token) {
    await this.field("Tenant").fill(tenant);
    await this.field("Token").fill(token);
    await this.button("Sign in").click();
  }

  // enter opens the page, signs in and waits for the navigation. By default it is the operator who enters, and who
  // chooses the walk's tenant.
  async enter(tenant = "", token = env.operator) {
    await this.goto();
    await this.signIn(tenant, token);
    await this.choices().first().waitFor();
    if (!tenant) await this.choose(env.tenant);
  }

  // signedOut waits for the form, with no token in it and nothing beside it.
  async signedOut() {
    await this.button("Sign in").waitFor();
    this.equal(await this.field("Token").inputValue(), "", "the field of the token");
    const open = [await this.choices().count(), await this.dialog().count()];
    this.equal(open, [0, 0], "views and dialogs without a token");
  }

  // choose selects a tenant in the header.
  async choose(tenant) {
    await this.field("Tenant", this.page.locator("header")).selectOption(tenant);
    await this.settled();
  }

  // open clicks on a view in the navigation, and waits until that says that it is the present one.
  async open(view) {
    const choice = this.choices().filter({ hasText: named(view) });
    await choice.click();
    await choice.and(this.page.locator("[aria-current=page], [aria-selected=true]")).waitFor();
    await this.settled();
  }

  // clipboard returns what was copied. Only a page that counts as secure may read it: that is another one, by its
  // address.
  async clipboard() {
    const context = await this.browser.newContext({ permissions: ["clipboard-read"] });
    try {
      const page = await context.newPage();
      await page.goto(`${env.url}/healthz`);
      return await page.evaluate(() => navigator.clipboard.readText());
    } finally {
      await context.close();
    }
  }

  // screenshot saves what there is to see, and returns where.
  async screenshot(title, fullPage = true) {
    const path = join(process.env.SCREENSHOTS, `${name}-${String(++this.#shots).padStart(2, "0")}-${title}.png`);
    await this.page.screenshot({ path, fullPage });
    return path;
  }

  // check looks at the present view, or dialog, as people do with a screen reader, in the dark and on a phone: axe-core
  // has no serious finding, and nothing is wider than 360 px. It saves a screenshot of each. Nor is there text that a
  // program has made by mistake.
  async check(title) {
    await this.settled();
    const text = await this.page.locator("body").innerText();
    const mistake = /^.*(\[object \w+\]|\bundefined\b|\bNaN\b|Invalid Date).*$/m.exec(text);
    if (mistake) throw new Error(`${title} shows ${mistake[0]}`);
    for (const colorScheme of ["dark", "light"]) {
      await this.page.emulateMedia({ colorScheme });
      await this.axe(`${title}, ${colorScheme}`);
      await this.screenshot(`${title}-${colorScheme}`);
    }
    await this.page.setViewportSize(phone);
    const { wide, width } = await this.page.evaluate(sideways);
    await this.screenshot(`${title}-phone`);
    if (width > phone.width) {
      const found = wide.slice(0, 9).join("\n");
      throw new Error(`${title}: ${width} px wide on a screen of ${phone.width} px. What sticks out:\n${found}`);
    }
    await this.page.setViewportSize(desktop);
    this.calm();
  }

  // axe fails if axe-core has a finding that is serious or critical.
  async axe(title) {
    await this.page.evaluate(axe.source); // a script element would break the page's policy
    const { violations } = await this.page.evaluate(() =>
      globalThis.axe.run(document, { resultTypes: ["violations"], preload: false }));
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, impact, help, nodes }) => `${impact} ${id}: ${help}\n` + nodes.slice(0, 5)
        .map((node) => `  ${node.html.slice(0, 200)}\n  ${node.failureSummary.replaceAll("\n", "\n  ")}`).join("\n"));
    if (serious.length) throw new Error(`axe-core finds in ${title}:\n${serious.join("\n")}`);
  }

  // calm fails if something has happened that no walk should see.
  calm() {
    if (this.problems.length) throw new Error(this.problems.join("\n"));
  }
}

// sideways is run in the page: it returns how wide that is, and what sticks out of the screen, but for what is in a
// place that scrolls by itself.
function sideways() {
  const around = (element) =>
    getComputedStyle(element).position === "absolute" ? element.offsetParent : element.parentElement;
  const clipped = (element) => element !== null && element !== document.body &&
    (getComputedStyle(element).overflowX !== "visible" || clipped(around(element)));
  return {
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !clipped(around(element)))
      .map((element) => element.outerHTML.slice(0, 120)),
  };
}

// watch is run in the page, before its scripts.
function watch() {
  addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sourceFile, lineNumber, sample }) =>
    globalThis.reportViolation(`${violatedDirective} ${blockedURI} ${sourceFile ?? ""}:${lineNumber} ${sample}`));
}

// run walks in a browser, and returns why it failed, or "".
async function run(steps, statuses) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
      "--host-resolver-rules=MAP tollgate.test 127.0.0.1"],
  });
  const tooLong = AbortSignal.timeout(walkLimit);
  tooLong.addEventListener("abort", () =>
    void browser.close({ reason: `the walk took more than ${walkLimit / 1000} s` }));
  try {
    const context = await browser.newContext({
      viewport: desktop, reducedMotion: "reduce", locale: "en-US", timezoneId: "Europe/Zurich",
    });
    context.setDefaultTimeout(limit);
    const page = await context.newPage();
    const t = new Walker(browser, context, page, statuses);
    await page.exposeFunction("reportViolation", (text) => t.problems.push(`content security policy: ${text}`));
    await page.addInitScript(watch);
    try {
      await steps(t);
      t.equal(await page.evaluate(() => globalThis.hacked), undefined, "window.hacked");
      t.calm();
      return "";
    } catch (error) {
      const text = await page.evaluate(() => document.body?.innerText).catch((e) => `(${e.message})`);
      const shot = await t.screenshot("failed").catch((e) => e.message);
      return [error.stack, ...t.problems, `The page at ${page.url()} shows:`, text, `Screenshot: ${shot}`].join("\n");
    }
  } finally {
    await browser.close();
  }
}

// walk runs the steps of a walk. statuses are those of refusals that it provokes: the browser shows them on its console
// as errors.
export async function walk(steps, statuses = []) {
  const failure = await run(steps, statuses);
  if (failure) {
    console.error(`${name} failed: ${failure}`);
    process.exitCode = 1;
  }
}
