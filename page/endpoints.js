// Endpoints of the providers, with their models and prices.

import { path, request } from './api.js';
import { button, controlOf, el, field, messages, number, showStatus, table } from './dom.js';
import { remove, set } from './json.js';
import { bind, Config, create, inputError, label, masked, member, rowButton, section } from './members.js';

// kinds are the members of providers that the gateway uses: how the path of a URL ends, and what models have prices of.
const kinds = new Map([
  ['text', { end: 'chat/completions', prices: ['input', 'output', 'cached_input', 'cache_write'] }],
  ['embeddings', { end: 'embeddings', prices: ['input'] }],
  ['transcription', { end: 'audio/transcriptions', prices: ['second', 'input', 'audio_input', 'output'] }],
  ['speech', { end: 'audio/speech', prices: ['character'] }],
  ['images', { end: 'images/generations', prices: ['input', 'output', 'image_input', 'image_output'] }],
  ['moderation', { end: 'moderations', prices: ['request'] }],
  ['realtime', { end: 'realtime', prices: ['input', 'output', 'cached_input', 'audio_input', 'audio_output'] }],
]);

// fallbacks are what prices are if they are missing: a number, or the price of that name.
const fallbacks = { input: '1', output: '1', second: '1', character: '1', request: '0', search: '0', cached_input: 'input',
  cache_write: 'input', audio_input: 'input', image_input: 'input', audio_output: 'output', image_output: 'output' };

// templates are [title, name, scheme, host and path, kinds (all if missing), end (the kind's if missing)].
const templates = [
  ['OpenAI', 'openai', 'https', 'api.openai.com/v1/'],
  ['Anthropic', 'anthropic', 'https', 'api.anthropic.com/v1/', ['text'], 'messages'],
  ['Ultravox', 'ultravox', '', '', ['realtime']],
  ['Ollama', 'ollama', 'http', 'localhost:11434/v1/', ['text', 'embeddings']],
  ['vLLM', 'vllm', 'http', 'localhost:8000/v1/', ['text', 'embeddings', 'transcription']],
  ['Another one with OpenAI’s API', '', '', ''],
];

const modelMember = (kind) => kind === 'realtime' ? 'model' : 'default_model';

// An Endpoint reads one of the config.
class Endpoint {
  constructor(config, kind, name) {
    const place = ['providers', kind, 'endpoints', name];
    Object.assign(this, { config, kind, name, place, of: `${name} (${kind})` });
    this.model = this.shown(modelMember(kind));
    this.isDefault = config.shown(['providers', kind, 'default']) === name;
    this.isUltravox = kind === 'realtime' && (this.shown('type') || name).startsWith('ultravox');
  }

  shown(...names) { return this.config.shown([...this.place, ...names]); }

  // priced returns what has prices, as [model, its place]: the listed models, and before them the default one.
  priced() {
    const listed = this.config.names([...this.place, 'models']);
    const own = this.kind === 'realtime' ? ['price'] : ['models', this.model];
    const first = listed.includes(this.model) || !this.model && !this.isUltravox ? [] : [[this.model || 'calls', own]];
    return [...first, ...listed.map((model) => [model, ['models', model]])].map(([model, at]) => [model, [...this.place, ...at]]);
  }

  prices() { return this.isUltravox ? ['second'] : kinds.get(this.kind).prices; }
}

function endpointsOf(config) {
  return [...kinds.keys()].flatMap((kind) =>
    config.names(['providers', kind, 'endpoints']).map((name) => new Endpoint(config, kind, name)));
}

// modelsOf returns the names of the endpoints' models, at most 50.
export function modelsOf(config) {
  const models = endpointsOf(config).flatMap((one) => [one.model, ...config.names([...one.place, 'models'])]);
  return [...new Set(models)].filter(Boolean).slice(0, 50);
}

export function endpointsSection(forms, config) {
  const all = endpointsOf(config);
  const lists = [...kinds.keys()].map((kind) => all.filter((one) => one.kind === kind)).filter((list) => list.length > 0);
  return section('Endpoints', button('Add endpoint', () => add(forms)), lists.length
    ? lists.map((list) => [el('h3', {}, label(list[0].kind)), list.map((one) => card(forms, one, list.length > 1))])
    : el('p', { class: 'faint' }, 'The gateway has no provider yet whose models it could offer.'));
}

// card returns an endpoint with its buttons and models. Of several one is the default.
function card(forms, one, isOfSeveral) {
  const said = messages();
  const key = one.shown('api_key');
  const keyName = one.shown('api_key_name');
  return el('article', { class: 'endpoint' },
    el('div', { class: 'head' },
      el('h4', {}, one.name, one.isDefault && el('span', { class: 'badge' }, 'default')),
      el('div', { class: 'actions' },
        rowButton('Test', one.of, () => test(forms, one, said)),
        rowButton('Edit', one.of, () => edit(forms, one)),
        isOfSeveral && !one.isDefault && rowButton('Make default', one.of, () => makeDefault(forms, one)),
        rowButton('Remove', one.of, () => removeEndpoint(forms, one), { class: 'danger' }))),
    said,
    el('dl', {},
      el('dt', {}, 'URL'), el('dd', {}, el('code', {}, one.shown('url') || 'the provider’s')),
      el('dt', {}, 'Key'), el('dd', {}, keyName ? `the operator’s ${keyName}` : key ? masked(key, one.of) : 'none'),
      el('dt', {}, 'Default model'), el('dd', {}, one.model || 'none')),
    models(forms, one));
}

// test asks the server whether the endpoint, as it is saved, works.
async function test(forms, one, said) {
  const saved = new Config(forms.editor.saved());
  if (!saved.node(one.place)) throw inputError('Save first: a test asks the endpoint as it is saved.');
  const answer = await request('POST', path`/admin/endpoints/${one.kind}/${one.name}/test`, { parallel: true });
  const { ok, status, latencyMs, model, error } = answer.body;
  const line = `${ok ? 'ok' : 'failed'} ${status || 'without a response'} in ${number(latencyMs)} ms` +
    (model ? `, model ${model}` : '') + (error ? `: ${error}` : '');
  const note = saved.source(one.place) === one.config.source(one.place) ? []
    : ['This is the endpoint as it is saved, without the changes in the text.'];
  if (ok) return showStatus(said, line, ...note);
  throw Object.assign(inputError(line), { errors: note, requestId: answer.headers.get('X-Request-Id') });
}

// membersOf returns the members of an endpoint that are edited here. preset is what a new one has.
function membersOf(kind, preset = {}) {
  const isRealtime = kind === 'realtime';
  return [
    isRealtime && member('API', 'type', 'text', { options: ['openai', 'ultravox', ''], preset: preset.type }),
    member('URL', 'url', 'text', { required: !isRealtime, preset: preset.url, inputmode: 'url',
      hint: isRealtime ? 'Empty: the provider’s own.' : `Whole, such as … /${kinds.get(kind).end}.` }),
    member('API key', 'api_key', 'secret'),
    member('Operator’s key', 'api_key_name', 'text', { hint: 'The name of one, in the place of an API key.' }),
    member(isRealtime ? 'Model' : 'Default model', modelMember(kind), 'text', { hint: 'Of requests that name none.' }),
    (isRealtime || kind === 'speech') && member('Voice', 'voice'),
    (kind === 'text' || kind === 'embeddings') && member('Bytes per token', 'bytes_per_token', 'number', {
      preset: preset.bytes, hint: 'Requests are held for their bytes divided by this, and charged what they cost. 3 is usual.' }),
    kind === 'text' && member('Output tokens', 'max_output_tokens', 'number', {
      hint: 'The most of a request that sets no limit. Empty: 4096.' }),
  ].filter(Boolean);
}

function edit(forms, one) {
  return forms.edit({ title: `Endpoint ${one.of}`, base: one.place, members: membersOf(one.kind), verb: 'Save endpoint',
    change: (text) => withOneKey(text, one) });
}

// withOneKey removes the old key if both are there: an endpoint has one, its own or the operator's.
function withOneKey(text, one) {
  const now = new Config(text);
  const keys = ['api_key', 'api_key_name'].map((name) => [...one.place, name]);
  const old = keys.find((key) => now.shown(key) === one.config.shown(key));
  return old && keys.every((key) => now.node(key)) ? remove(text, old) : text;
}

// add asks for a new endpoint. Its fields depend on the kind and the provider.
function add(forms) {
  const kind = field('Kind', { tag: 'select', options: [...kinds.keys()].map((one) => [one, label(one)]) });
  const provider = field('Provider', { tag: 'select' });
  const name = field('Name', { name: 'name', required: true });
  const rest = el('div');
  let bound;
  const fill = () => {
    const chosen = controlOf(kind).value;
    const [, own, scheme, host, , end = kinds.get(chosen).end] = templates.find(([title]) => title === controlOf(provider).value);
    controlOf(name).value = own;
    bound = bind(undefined, undefined, membersOf(chosen, chosen === 'realtime' ? { type: own || 'openai' }
      : { url: host && `${scheme}://${host}${end}`, bytes: '3' }));
    rest.replaceChildren(...bound.fields);
  };
  const offer = () => {
    const offered = templates.filter(([, , , , only]) => !only || only.includes(controlOf(kind).value));
    controlOf(provider).replaceChildren(...offered.map(([title]) => el('option', {}, title)));
    fill();
  };
  controlOf(kind).addEventListener('change', offer);
  controlOf(provider).addEventListener('change', fill);
  offer();
  return forms.ask({ title: 'New endpoint', verb: 'Add endpoint', fields: [kind, provider, name, rest],
    change: (text, values) => {
      const at = ['providers', controlOf(kind).value, 'endpoints', values.name.trim()];
      return bound.edit(create(text, at), values, at);
    } });
}

function makeDefault(forms, one) {
  return forms.apply('Make default', (text) =>
    set(text, ['providers', one.kind, 'default'], JSON.stringify(one.name)));
}

function removeEndpoint(forms, one) {
  return forms.remove(`the endpoint ${one.of}`, one.place, 'Its key and its prices go, too. Requests go to the others.',
    (text) => one.isDefault ? remove(text, ['providers', one.kind, 'default']) : text);
}

// models returns the models of an endpoint with their prices.
function models(forms, one) {
  const prices = one.prices();
  const rows = one.priced().map(([model, place]) => {
    const further = one.config.names(place).filter((name) => !prices.includes(name));
    const isListed = place.at(-2) === 'models' && one.config.node(place);
    return [[model, further.length > 0 && el('span', { class: 'faint' }, ` with ${further.join(', ')}`)],
      ...prices.map((price) => one.config.shown([...place, price]) || el('span', { class: 'faint' }, fallbacks[price])),
      el('div', { class: 'actions' },
        rowButton('Prices', `of ${model}, ${one.of}`, () => editPrices(forms, one, model, place)),
        isListed && rowButton('Remove', `${model}, ${one.of}`, () => forms.remove(`the model ${model}`, place,
          'Its prices go, too. The default model can still be asked for, others cannot.'), { class: 'danger' }))];
  });
  const list = el('details', { open: forms.open.get(one.of) ?? rows.length < 6 },
    el('summary', {}, `Models and prices (${rows.length})`),
    rows.length > 0 && table(`Models of ${one.of}`, ['Model', ...prices.map(label), 'Change'], rows,
      { hideCaption: true, numeric: prices.map((_, i) => i + 1) }),
    rowButton('Add model', `to ${one.of}`, () => addModel(forms, one)));
  list.addEventListener('toggle', () => forms.open.set(one.of, list.open));
  return list;
}

const priceText = 'In tokens of the balance, for one of what the price is of. If a token of the balance is a millionth of ' +
  'a dollar, these are dollars for a million.';

const priceMembers = (names) => names.map((name) =>
  member(label(name), name, 'number', { hint: `Empty: ${fallbacks[name] ?? 'another price'}.` }));

function editPrices(forms, one, model, place) {
  const others = one.config.names(place).filter((name) => one.config.node([...place, name]).kind === 'number');
  return forms.edit({ title: `Prices of ${model}`, text: priceText, base: place, verb: 'Save prices',
    members: priceMembers([...new Set([...one.prices(), ...others])]) });
}

function addModel(forms, one) {
  const name = member('Model', [], 'text', { hint: 'As the provider names it. gpt-* stands for all that begin so, * for all.' });
  return forms.add({ title: `New model of ${one.of}`, text: priceText, verb: 'Add model', path: [...one.place, 'models'], name,
    members: priceMembers(one.prices()) });
}
