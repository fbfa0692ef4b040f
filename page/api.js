// Calls tollgate's HTTP API with the token that was entered, which is in memory only.

const session = { token: '', tenant: '', operator: false };
let onUnauthorized; // called when the token opens nothing any more

export function whenUnauthorized(f) { onUnauthorized = f; }

// signIn keeps a token. tenant is its admin's, or the one that the operator looks at.
export function signIn(token, tenant, operator) { Object.assign(session, { token, tenant, operator }); }

export const isOperator = () => session.operator;
export const currentTenant = () => session.tenant;
export function chooseTenant(tenant) { session.tenant = tenant; }

// ApiError is a response that is not 2xx, or none at all: then its status is 0. errors are further sentences.
export class ApiError extends Error {
  constructor(message, status, { errors = [], requestId = '', retryAfter = '' } = {}) {
    super(message);
    Object.assign(this, { status, errors, requestId, retryAfter });
  }
}

// path returns the path of a route of the tenant, with each value escaped: path`/admin/keys/${key}`.
export const path = (parts, ...values) => rootPath`/${session.tenant}` + rootPath(parts, ...values);

// rootPath does what path does for a route that belongs to no tenant.
export const rootPath = (parts, ...values) => String.raw({ raw: parts }, ...values.map(encodeURIComponent));

// query returns "?a=b&…" of those members that are not empty.
export function query(members) {
  const given = Object.entries(members).filter(([, value]) => value !== undefined && value !== null && value !== '');
  return given.length ? '?' + new URLSearchParams(given) : '';
}

const patience = 30_000; // milliseconds

let turn = Promise.resolve(); // ends when the last request in the queue has its response

// request returns the response to one request: { status, headers, text, body }, where body is the parsed text. Requests
// wait for each other, since the API serves expensive ones of a tenant one at a time, unless parallel is true. headers
// may replace Authorization, also by undefined. It throws an ApiError, or an AbortError when signal says so.
export function request(method, url, options = {}) {
  const send = exchange.bind(null, method, url, { ...options, token: session.token });
  if (options.parallel) return send();
  const mine = turn.then(send);
  turn = mine.catch(() => {});
  return mine;
}

async function exchange(method, url, options) {
  const { token } = options;
  const ends = [options.signal ?? [], AbortSignal.timeout(patience)].flat(); // others wait for this one
  const response = await open(method, url, { ...options, signal: AbortSignal.any(ends) });
  const { status, headers } = response;
  const text = await reach(() => response.text());
  const answer = { status, headers, text, body: parseBody(text) };
  if (response.ok) return answer;
  const isOurs = !('Authorization' in (options.headers ?? {})) && token === session.token;
  if (status === 401 && isOurs) onUnauthorized();
  throw errorOf(answer);
}

// open sends a request and returns the Response, whatever its status. A body that is not a string is sent as JSON.
export async function open(method, url, { body, headers, signal, token } = {}) {
  signal?.throwIfAborted();
  const all = { Authorization: 'Bearer ' + token, ...headers };
  if (all.Authorization === undefined) delete all.Authorization;
  if (body !== undefined) all['Content-Type'] = 'application/json';
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return reach(() => fetch(url, { method, headers: all, body: text, signal, cache: 'no-store', credentials: 'omit' }));
}

// reach returns what f does, or throws an ApiError if the network fails.
async function reach(f) {
  try {
    return await f();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('No whole response came from tollgate. Try again.', 0);
  }
}

export function parseBody(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // of a 204, or a proxy's page
  }
}

// errorOf returns the ApiError for a response, also for one in a provider's shape.
export function errorOf({ status, headers, body }) {
  const { error, errors } = body ?? {};
  const sentence = [error?.message, error, `The response was ${status}.`].find((one) => typeof one === 'string');
  return new ApiError(sentence, status, {
    errors, requestId: headers.get('X-Request-Id') ?? '', retryAfter: headers.get('Retry-After') ?? '',
  });
}

// Attempt makes a change happen once that the user asks for again after an error: it repeats the Idempotency-Key of the
// same request until that has succeeded.
export class Attempt {
  #key;
  #content;

  async send(method, url, body) {
    const content = method + url + JSON.stringify(body);
    if (content !== this.#content) {
      this.#content = content;
      this.#key = crypto.getRandomValues(new Uint32Array(4)).join('-'); // randomUUID needs HTTPS
    }
    const answer = await request(method, url, { body, headers: { 'Idempotency-Key': this.#key } });
    this.#content = undefined;
    return answer;
  }
}
