// Endpoints of the providers, with their models and prices.

import { path, request } from './api.js';
import { button, controlOf, el, field, inputError, messages, number, rowButton, showStatus } from './dom.js';
import { set } from './json.js';
import { bind, Config, create, list, member, nameField, section } from './members.js';

// kinds are the members of providers that the gateway uses: the end of their URLs, and the usual prices of models.
const kinds = {
  text: ['chat/completions', ['input', 'output', 'cached_input', 'cache_write']],
  embeddings: ['embeddings', ['input']],
  transcription: ['audio/transcriptions', ['second', 'input', 'audio_input', 'output']],
  speech: ['audio/speech', ['character']],
  images: ['images/generations', ['input', 'image_input', 'output']],
  moderation: ['moderations', ['request']],
  realtime: ['', ['input', 'cached_input', 'audio_input', 'output', 'audio_output', 'second']],
};

const all = Object.keys(kinds);

// providers are what a new endpoint begins with: the start of the URL, and its end if that is not the kind's.
const providers = {
  OpenAI: ['https://api.openai.com/v1/'],
  Anthropic: ['https://api.anthropic.com/v1/', 'messages'],
  Ollama: ['http://localhost:11434/v1/'],
  vLLM: ['http://localhost:8000/v1/'],
  'Another one': [''],
};

const modelMember = (kind) => kind === 'realtime' ? 'model' : 'default_model';

const labelOf = (name) => name[0].toUpperCase() + name.slice(1).replaceAll('_', ' ');

// endpointsOf reads the endpoints of a kind. of tells a screen reader which one it is.
function endpointsOf(config, kind) {
  return config.names(['providers', kind, 'endpoints']).map((name) => {
    const place = ['providers', kind, 'endpoints', name];
    return { config, kind, name, place, of: `${name} (${kind})`, model: config.shown([...place, modelMember(kind)]),
      listed: config.names([...place, 'models']) };
  });
}

export function endpointsSection(forms, config) {
  const cards = all.map((kind) => [kind, endpointsOf(config, kind)]).filter(([, found]) => found.length > 0)
    .map(([kind, found]) => [el('h3', {}, labelOf(kind)), found.map((one) => card(forms, one, found.length > 1))]);
  return section('Endpoints', button('Add endpoint', () => add(forms)), cards.length ? cards
    : el('p', { class: 'faint' }, 'The gateway has no provider yet whose models it could offer.'));
}

const tag = () => el('span', { class: 'tag' }, 'default');

// card returns an endpoint with its buttons and models. Of several one can be the default.
function card(forms, one, isOfSeveral) {
  const { config, kind, name, place, of } = one;
  const byDefault = ['providers', kind, 'default'];
  const isDefault = config.shown(byDefault) === name;
  const shown = (member) => config.shown([...place, member]);
  const said = messages();
  return el('article', { class: 'endpoint' },
    el('div', { class: 'head' },
      el('h4', {}, name, isDefault && tag()),
      el('div', { class: 'actions' },
        rowButton('Test', of, () => test(forms, one, said)),
        rowButton('Edit', of, () => forms.edit(`endpoint ${of}`, place, membersOf(kind))),
        isOfSeveral && !isDefault && rowButton('Make default', of, () =>
          forms.ask(`Make ${of} the default`, 'Make default', (text) => set(text, byDefault, JSON.stringify(name)),
            { text: 'Requests whose model it has go to it first.' })),
        rowButton('Remove', of, () => forms.remove(`endpoint ${of}`, 'Its key, models and prices go, too.', place,
          ...isDefault ? [byDefault] : []), { class: 'danger' }))),
    said,
    el('dl', {},
      el('dt', {}, 'URL'), el('dd', {}, el('code', {}, shown('url') || 'the provider’s')),
      el('dt', {}, 'Key'), el('dd', {}, shown('api_key_name') ? `the operator’s ${shown('api_key_name')}`
        : masked(shown('api_key'), `key of ${of}`))),
    models(forms, one));
}

// masked returns dots for a secret, with a button that shows it and hides it again.
function masked(secret, what) {
  if (!secret) return 'none';
  const dots = '••••••••';
  const text = el('code', {}, dots);
  const show = rowButton('Show', what, () => {
    const isHidden = text.textContent === dots;
    text.textContent = isHidden ? secret : dots;
    show.setAttribute('aria-pressed', isHidden);
  }, { 'aria-pressed': 'false' });
  return [text, ' ', show];
}

// test asks the server whether the endpoint, as it is saved, works.
async function test({ editor }, { config, kind, name, place }, said) {
  const saved = new Config(editor.saved()).shown(place);
  if (!saved) throw inputError('Save first: a test asks the endpoint as it is saved.');
  const note = saved === config.shown(place) ? [] : ['The endpoint was tested without what is not saved yet.'];
  const { headers, body } = await request('POST', path`/admin/endpoints/${kind}/${name}/test`, { parallel: true });
  const line = `${body.ok ? 'ok' : 'failed'} ${body.status || 'without a response'} in ${number(body.latencyMs)} ms` +
    (body.model ? `, model ${body.model}` : '') + (body.error ? `: ${body.error}` : '');
  if (body.ok) return showStatus(said, line, ...note);
  throw Object.assign(inputError(line), { errors: note, requestId: headers.get('X-Request-Id') });
}

const membersOf = (kind) => [
  member('URL', 'url', 'text', { inputmode: 'url', hint: 'With its whole path.' }),
  member('API key', 'api_key', 'secret', { class: 'short' }),
  member('Operator’s key', 'api_key_name', 'text', { class: 'short', hint: 'Its name, instead of a key.' }),
  member('Default model', modelMember(kind), 'text', { class: 'short', hint: 'For requests without a model.' }),
  ...kind === 'realtime' ? [] : [member('Bytes per token', 'bytes_per_token', 'number',
    { hint: 'Decides how much is held, not what a request costs. 3 is usual.' })],
];

// add asks for a new endpoint, whose name and URL follow from its kind and its provider.
function add(forms) {
  const select = (label, options) => field(label, { tag: 'select', class: 'short', options });
  const fields = [select('Kind', all.map((kind) => [kind, labelOf(kind)])), select('Provider', Object.keys(providers)),
    nameField('Name'), ...bind(membersOf('text')).fields];
  const [kind, provider, name, url] = fields.map(controlOf);
  controlOf(fields.at(-1)).value = 3;
  const fill = () => {
    const [start, end = kinds[kind.value][0]] = providers[provider.value];
    name.value = start && provider.value.toLowerCase();
    url.value = start && end && start + end;
  };
  kind.addEventListener('change', fill);
  provider.addEventListener('change', fill);
  fill();
  return forms.ask('Add endpoint', 'Add', (text, values) =>
    create(text, ['providers', kind.value, 'endpoints'], membersOf(kind.value), values), { fields });
}

// models returns the models of an endpoint, the default one too, with their prices.
function models(forms, { config, kind, place, of, model, listed }) {
  const members = kinds[kind][1].map((price) => member(labelOf(price), price, 'number'));
  const text = 'In tokens of the balance. If one is a millionth of a dollar, this is in dollars for a million. ' +
    'Empty: 1, or what other input or output costs; a request costs nothing.';
  const rowOf = (name, at) => [
    [name, name === model && tag()],
    config.names(at).map((price) => `${labelOf(price)} ${config.shown([...at, price])}`).join(', ') || 'not set',
    forms.buttons(`prices of ${name}`, `${name}, ${of}`, at, members, config.shown(at) &&
      'It can still be asked for if it is the default model, or * stands for it.', text),
  ];
  const rows = listed.map((name) => rowOf(name, [...place, 'models', name]));
  const isSession = kind === 'realtime';
  if ((model || isSession) && !listed.includes(model)) {
    rows.unshift(rowOf(model || 'calls', [...place, ...isSession ? ['price'] : ['models', model]]));
  }
  const name = () => nameField('Model', 'As the provider names it. gpt-* stands for all that begin with gpt-.');
  return [
    el('div', { class: 'bounded' }, list(`Models of ${of}`, ['Model', 'Prices'], [], rows, 'It has no models yet.')),
    rowButton('Add model', `to ${of}`, () => forms.add(`model to ${of}`, [...place, 'models'], name(), members, text)),
  ];
}
