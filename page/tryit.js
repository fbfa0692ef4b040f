// The view Try it: a conversation with a model of the tenant, as a user with a temporary key has it, and what each
// request held, cost and left.

import { errorOf, open, parseBody, path, request } from './api.js';
import { button, controlOf, el, field, form, inputError, mask, messages, number, showStatus } from './dom.js';

// formats are the wire formats of text endpoints by the end of their URL's path: the route, the request for a
// conversation of { role, content }, and the text of a response.
const formats = [
  {
    suffix: '/chat/completions',
    route: '/v1/chat/completions',
    request: (model, messages, limit) => ({ model, messages, max_tokens: limit }),
    text: (body) => body.choices?.[0]?.message?.content,
  },
  {
    suffix: '/messages',
    route: '/v1/messages',
    request: (model, messages, limit) => ({ model, messages, max_tokens: limit }),
    text: (body) => textOf(body.content),
  },
  {
    suffix: '/responses',
    route: '/v1/responses',
    request: (model, messages, limit) => ({ model, input: messages, max_output_tokens: limit }),
    text: (body) => textOf((body.output ?? []).flatMap((item) => item.content ?? [])),
  },
];

function textOf(parts) {
  return (parts ?? []).map((part) => part.text ?? '').join('');
}

// formatOf returns the format of an endpoint, or undefined if the gateway does not use it.
function formatOf(endpoint) {
  try {
    const { pathname } = new URL(endpoint.url);
    return formats.find(({ suffix }) => pathname.replace(/\/+$/, '').endsWith(suffix));
  } catch {
    return undefined;
  }
}

export async function showTryIt(content, { signal }) {
  const { body } = await request('GET', path`/admin/config`, { signal });
  const text = body.config.providers?.text ?? {};
  const endpoints = Object.entries(text.endpoints ?? {}).filter(([, endpoint]) => formatOf(endpoint));
  endpoints.sort(([a], [b]) => (b === text.default) - (a === text.default)); // the default one first
  if (endpoints.length === 0) {
    content.append(el('p', {}, 'This tenant has no endpoint for text. Add one in the view Config.'));
    return;
  }
  new Conversation(content, new Map(endpoints), signal);
}

class Conversation {
  #key = ''; // of the visitor that the conversation is with, as soon as there is one
  #left = 0; // tokens of that key
  #messages = []; // { role, content }: what the model gets
  #log = el('div', { class: 'talk', role: 'log', 'aria-label': 'Conversation', tabindex: '0' });

  constructor(content, endpoints, signal) {
    this.endpoints = endpoints;
    this.signal = signal;
    this.endpoint = controlOf(field('Endpoint', { tag: 'select', name: 'endpoint', options: [...endpoints.keys()] }));
    this.model = controlOf(field('Model', { name: 'model', list: 'models', spellcheck: 'false' }));
    this.limit = controlOf(field('Longest reply, in tokens', { name: 'limit', type: 'number', min: 1,
      hint: 'By default what half of the balance affords.' }));
    this.key = controlOf(field('API key', { name: 'apiKey', placeholder: 'a temporary one', spellcheck: 'false',
      hint: 'Leave it empty to be a new visitor.' }));
    this.account = el('p', { class: 'faint' }, 'The first message gets a temporary key, as a visitor does.');
    const message = field('Message', { tag: 'textarea', name: 'message', rows: 3 });
    const send = form([message], 'Send', (values, node) => this.#send(values.message, node));
    controlOf(message).addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) send.requestSubmit();
    });
    this.endpoint.addEventListener('change', () => this.#suggest());
    this.key.addEventListener('change', () => this.#forgetKey());
    content.append(
      el('section', {}, el('div', { class: 'row' },
        [this.endpoint, this.model, this.limit, this.key].map((control) => control.closest('.field'))),
      el('datalist', { id: 'models' }), this.account),
      this.#log,
      el('section', {}, send, button('New conversation', () => this.#restart(send))), messages());
    this.#suggest();
  }

  // #suggest offers the models that the config names.
  #suggest() {
    const { default_model: first, models = {} } = this.endpoints.get(this.endpoint.value);
    this.model.placeholder = first ?? '';
    const names = [...new Set([first, ...Object.keys(models)])].filter((name) => name && !name.includes('*'));
    document.getElementById('models').replaceChildren(...names.map((name) => el('option', { value: name })));
  }

  #forgetKey() {
    this.#key = '';
    this.account.textContent = '';
  }

  #restart(near) {
    this.#messages = [];
    this.#log.replaceChildren();
    this.#forgetKey();
    showStatus(near, 'The next message begins a new conversation, with a new temporary key.');
  }

  // #useKey makes a temporary key, as a visitor gets it, unless one was pasted.
  async #useKey() {
    if (this.#key) return;
    const pasted = this.key.value.trim();
    const options = { headers: { Authorization: pasted ? 'Bearer ' + pasted : undefined }, signal: this.signal };
    const answer = pasted ? await request('GET', path`/auth/key`, options)
      : await request('POST', path`/auth/anonymous`, options);
    this.#key = pasted || answer.body.apiKey;
    this.#showLeft(answer.body.tokensLeft);
  }

  #showLeft(left) {
    this.#left = left;
    this.account.replaceChildren('The key ', el('code', {}, mask(this.#key)), ` has ${number(left)} tokens left.`);
  }

  async #send(text, near) {
    if (text.trim() === '') throw inputError('Enter a message.');
    await this.#useKey();
    const name = this.endpoint.value;
    const endpoint = this.endpoints.get(name);
    const format = formatOf(endpoint);
    const model = this.model.value.trim() || endpoint.default_model;
    const messages = [...this.#messages, { role: 'user', content: text }];
    const limit = Number(this.limit.value) || Math.max(1, Math.min(1024, Math.floor(this.#left / 2)));
    const body = JSON.stringify(format.request(model && `${name}/${model}`, messages, limit));
    const began = performance.now();
    const response = await open('POST', path`` + format.route,
      { body, headers: { Authorization: 'Bearer ' + this.#key }, signal: this.signal });
    const answer = { status: response.status, headers: response.headers, body: parseBody(await response.text()) };
    const cost = costOf(response.headers, performance.now() - began);
    if (response.headers.has('X-Tokens-Left')) this.#showLeft(Number(response.headers.get('X-Tokens-Left')));
    if (!response.ok || !answer.body) throw errorOf(answer);
    const reply = format.text(answer.body) ?? '';
    this.#messages = [...messages, { role: 'assistant', content: reply }];
    this.#log.append(
      el('div', { class: 'mine' }, text),
      el('div', { class: 'theirs' }, reply || el('em', {}, 'The reply has no text.')),
      el('p', { class: 'id' }, cost));
    near.reset();
    near.querySelector('textarea').focus();
  }
}

// costOf returns what the headers of a response say of its request.
function costOf(headers, milliseconds) {
  const amount = (name) => (headers.has(name) ? number(Number(headers.get(name))) : '–');
  const parts = [`held ${amount('X-Tokens-Held')}`, `cost ${amount('X-Tokens-Charged')}`,
    `left ${amount('X-Tokens-Left')}`, `${number(Math.round(milliseconds))} ms`];
  if (headers.get('X-Cache') === 'HIT') parts.push('from the cache');
  return parts.join(' · ');
}
