// Calls tollgate's HTTP API with the token of whoever has signed in. The token is in memory only.

const session = { token: '', tenant: '', operator: false };

// onUnauthorized is called when a response says that the token opens nothing any more.
let onUnauthorized = () => {};

export function whenUnauthorized(f) { onUnauthorized = f; }

// signIn keeps a credential. tenant is the one whose admin has the token, or the one that the operator looks at.
export function signIn(token, tenant, operator) { Object.assign(session, { token, tenant, operator }); }

export function signOut() { signIn('', '', false); }

export const isOperator = () => session.operator;
export const currentTenant = () => session.tenant;
export function chooseTenant(tenant) { session.tenant = tenant; }

// ApiError is a response that is not 2xx, or none at all: then its status is 0.
export class ApiError extends Error {
  constructor(message, status, response = {}) {
    super(message);
    this.status = status;
    this.errors = response.errors ?? []; // further sentences of a config that was refused
    this.requestId = response.requestId ?? '';
    this.retryAfter = response.retryAfter ?? '';
  }
}

// path returns the path of a route of the tenant, with each part in parts escaped: path`/admin/keys/${key}`.
export function path(parts, ...values) {
  return '/' + encodeURIComponent(session.tenant) + rootPath(parts, ...values);
}

// rootPath does what path does for a route that belongs to no tenant.
export function rootPath(parts, ...values) {
  return String.raw({ raw: parts }, ...values.map(encodeURIComponent));
}

// query returns "?a=b&…" of those members that are neither undefined nor empty.
export function query(members) {
  const given = Object.entries(members).filter(([, value]) => value !== undefined && value !== null && value !== '');
  return given.length ? '?' + new URLSearchParams(given) : '';
}

let turn = Promise.resolve(); // ends when the last request in the queue has its response

// request sends one request and returns its response: { status, headers, text, body }. body is the parsed JSON, which
// loses what numbers look like; text does not. options:
//   body      a string is sent as it is, anything else as JSON
//   headers   more headers; Authorization replaces the token of the session, undefined means none
//   signal    an AbortSignal
//   parallel  do not wait for others: they queue here because the API serves expensive ones of a tenant one at a time
// It throws an ApiError, or an AbortError if signal says so.
export function request(method, url, options = {}) {
  if (options.parallel) return exchange(method, url, options);
  const mine = turn.then(() => exchange(method, url, options));
  turn = mine.catch(() => {});
  return mine;
}

async function exchange(method, url, options) {
  const sent = session.token;
  const response = await open(method, url, options);
  const answer = { status: response.status, headers: response.headers, text: await readText(response), body: null };
  answer.body = parseBody(answer.text);
  if (response.ok) return answer;
  const own = !('Authorization' in (options.headers ?? {}));
  if (response.status === 401 && own && sent === session.token) onUnauthorized();
  throw errorOf(answer);
}

// open sends a request and returns the Response, whatever its status, for a caller that reads it as it comes.
export async function open(method, url, { body, headers, signal } = {}) {
  signal?.throwIfAborted();
  const all = { Authorization: 'Bearer ' + session.token, ...headers };
  if (all.Authorization === undefined) delete all.Authorization;
  if (body !== undefined) all['Content-Type'] = 'application/json';
  const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
  try {
    return await fetch(url, { method, headers: all, body: text, signal, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('No response: tollgate cannot be reached. Try again.', 0);
  }
}

async function readText(response) {
  try {
    return await response.text();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The response ended early. Try again.', 0);
  }
}

export function parseBody(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a 204, or a proxy's page
  }
}

// errorOf returns the ApiError for a response: the server's sentence as it came, also in a provider's shape.
export function errorOf({ status, headers, body }) {
  const error = body?.error;
  const sentence = typeof error === 'string' ? error : error?.message;
  return new ApiError(sentence ?? `The response was ${status}, without a sentence.`, status, {
    errors: Array.isArray(body?.errors) ? body.errors : [],
    requestId: headers.get('X-Request-Id') ?? '',
    retryAfter: headers.get('Retry-After') ?? '',
  });
}

// Attempt makes a change that the user asks for again after an error happen once: it gives the same Idempotency-Key to
// the same request until that has succeeded.
export class Attempt {
  #key = '';
  #content = '';

  async send(method, url, body) {
    const content = method + url + JSON.stringify(body);
    if (content !== this.#content) this.#begin(content);
    const answer = await request(method, url, { body, headers: { 'Idempotency-Key': this.#key } });
    this.#content = '';
    return answer;
  }

  #begin(content) {
    this.#content = content;
    // crypto.randomUUID exists over HTTPS only.
    const random = crypto.getRandomValues(new Uint8Array(16));
    this.#key = Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('');
  }
}
