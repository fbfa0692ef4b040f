// The view Try it: a conversation as a visitor has it, and what each request held, cost and left.

import { errorOf, open, parseBody, path, request } from './api.js';
import { button, controlOf, el, field, form, inputError, mask, number, showStatus } from './dom.js';

// formats are, by the end of an endpoint's URL, the member of a request that has the messages, and the parts of a text.
const formats = new Map([
  ['/chat/completions', { member: 'messages', parts: (body) => [{ text: body.choices?.[0]?.message?.content }] }],
  ['/messages', { member: 'messages', parts: (body) => body.content }],
  ['/responses', { member: 'input', parts: (body) => body.output?.flatMap((item) => item.content ?? []) }],
]);

// suffixOf returns the key of an endpoint in formats, or undefined if the gateway does not use it.
function suffixOf({ url }) {
  const way = URL.parse(url)?.pathname.replace(/\/+$/, '');
  return [...formats.keys()].find((suffix) => way?.endsWith(suffix));
}

export async function showTryIt(content, { signal }) {
  const { body } = await request('GET', path`/admin/config`, { signal });
  const text = body.config.providers?.text ?? {};
  const endpoints = new Map(Object.entries(text.endpoints ?? {}).filter(([, endpoint]) => suffixOf(endpoint)));
  if (endpoints.size === 0) {
    content.append(el('p', {}, 'This tenant has no endpoint for text. Add one in the view Config.'));
    return;
  }
  let key = ''; // of the visitor, from the first message on
  let messages = [];
  const account = el('p', { class: 'faint' }, 'The first message gets a temporary key, as a visitor does.');
  const log = el('div', { class: 'talk', role: 'log', 'aria-label': 'Conversation', tabindex: '0' });
  const endpoint = field('Endpoint', { tag: 'select', options: [...endpoints.keys()] });
  const model = field('Model', { spellcheck: 'false' });
  if (endpoints.has(text.default)) controlOf(endpoint).value = text.default;
  const chosen = () => endpoints.get(controlOf(endpoint).value);
  const suggest = () => { controlOf(model).placeholder = chosen().default_model ?? ''; };
  endpoint.addEventListener('change', suggest);
  suggest();
  const send = form([field('Message', { tag: 'textarea', name: 'message', rows: 3 })], 'Send', talk);
  send.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) send.requestSubmit();
  });
  send.querySelector('.actions').append(button('New conversation', () => {
    key = '';
    messages = [];
    log.replaceChildren();
    showStatus(send, 'The next message begins a new conversation, with a new temporary key.');
  }));
  const choices = el('section', {}, el('div', { class: 'row' }, endpoint, model), account);
  content.append(choices, log, el('section', {}, send));

  async function talk({ message }) {
    if (message.trim() === '') throw inputError('Enter a message.');
    if (!key) {
      const options = { headers: { Authorization: undefined }, signal };
      const answer = await request('POST', path`/auth/anonymous`, options);
      key = answer.body.apiKey;
      showLeft(answer.body.tokensLeft);
    }
    const format = formats.get(suffixOf(chosen()));
    const asked = controlOf(model).value.trim() || chosen().default_model;
    const said = [...messages, { role: 'user', content: message }];
    const began = performance.now();
    const response = await open('POST', path`/v1` + suffixOf(chosen()), {
      body: { model: asked && `${controlOf(endpoint).value}/${asked}`, [format.member]: said },
      headers: { Authorization: 'Bearer ' + key }, signal,
    });
    const { status, headers } = response;
    const body = parseBody(await response.text());
    const took = performance.now() - began;
    if (headers.has('X-Tokens-Left')) showLeft(Number(headers.get('X-Tokens-Left')));
    if (!response.ok || !body) throw errorOf({ status, headers, body });
    const reply = (format.parts(body) ?? []).map((part) => part.text ?? '').join('');
    messages = [...said, { role: 'assistant', content: reply }];
    log.append(el('div', { class: 'mine' }, message),
      el('div', { class: 'theirs' }, reply || el('em', {}, 'The reply has no text.')),
      el('p', { class: 'id' }, costOf(headers, took)));
    send.reset();
    send.querySelector('textarea').focus();
  }

  function showLeft(left) {
    account.replaceChildren('The key ', el('code', {}, mask(key)), ` has ${number(left)} tokens left.`);
  }
}

function costOf(headers, milliseconds) {
  const amount = (name) => (headers.has(name) ? number(Number(headers.get(name))) : '–');
  return `held ${amount('X-Tokens-Held')} · cost ${amount('X-Tokens-Charged')} · left ${amount('X-Tokens-Left')} · ` +
    `${number(Math.round(milliseconds))} ms${headers.get('X-Cache') === 'HIT' ? ' · from the cache' : ''}`;
}
