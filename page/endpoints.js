// Endpoints of the providers, with their models and prices.

import { path, request } from './api.js';
import { button, controlOf, el, field, inputError, messages, number, rowButton, showStatus } from './dom.js';
import { remove, set } from './json.js';
import { bind, Config, create, labelOf, list, masked, member, section } from './members.js';

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

// templates are what a new endpoint begins with: [title, name, start of the URL, its end if that is not the kind's].
const templates = [
  ['OpenAI', 'openai', 'https://api.openai.com/v1/'],
  ['Anthropic', 'anthropic', 'https://api.anthropic.com/v1/', 'messages'],
  ['Ollama', 'ollama', 'http://localhost:11434/v1/'],
  ['vLLM', 'vllm', 'http://localhost:8000/v1/'],
  ['Another one', '', ''],
];

const modelMember = (kind) => kind === 'realtime' ? 'model' : 'default_model';

// endpointsOf reads the endpoints of a kind. of tells a screen reader which one it is.
function endpointsOf(config, kind) {
  return config.names(['providers', kind, 'endpoints']).map((name) => {
    const place = ['providers', kind, 'endpoints', name];
    return { config, kind, name, place, of: `${name} (${kind})`, model: config.shown([...place, modelMember(kind)]),
      listed: config.names([...place, 'models']) };
  });
}

// modelsOf returns the names of the endpoints' models, at most 50.
export function modelsOf(config) {
  const endpoints = all.flatMap((kind) => endpointsOf(config, kind));
  return [...new Set(endpoints.flatMap(({ model, listed }) => [model, ...listed]))].filter(Boolean).slice(0, 50);
}

export function endpointsSection(forms, config) {
  const lists = all.map((kind) => endpointsOf(config, kind)).filter((list) => list.length > 0);
  return section('Endpoints', button('Add endpoint', () => add(forms)), lists.length
    ? lists.map((list) => [el('h3', {}, labelOf(list[0].kind)), list.map((one) => card(forms, one, list.length > 1))])
    : el('p', { class: 'faint' }, 'The gateway has no provider yet whose models it could offer.'));
}

const tag = () => el('span', { class: 'tag' }, 'default');

// card returns an endpoint with its buttons and models. Of several one can be the default.
function card(forms, one, isOfSeveral) {
  const { config, kind, name, place, of } = one;
  const byDefault = ['providers', kind, 'default'];
  const isDefault = config.shown(byDefault) === name;
  const operators = config.shown([...place, 'api_key_name']);
  const key = config.shown([...place, 'api_key']);
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
        rowButton('Remove', of, () => forms.remove(`endpoint ${of}`, place, 'Its key, models and prices go, too.',
          (text) => isDefault ? remove(text, byDefault) : text), { class: 'danger' }))),
    said,
    el('dl', {},
      el('dt', {}, 'URL'), el('dd', {}, el('code', {}, config.shown([...place, 'url']) || 'the provider’s')),
      el('dt', {}, 'Key'), el('dd', {}, operators ? `the operator’s ${operators}` : masked(key, `key of ${of}`))),
    models(forms, one));
}

// test asks the server whether the endpoint, as it is saved, works.
async function test({ editor }, { config, kind, name, place }, said) {
  const saved = new Config(editor.saved()).shown(place);
  if (!saved) throw inputError('Save first: a test asks the endpoint as it is saved.');
  const note = saved === config.shown(place) ? [] : ['The endpoint was tested without what is not saved yet.'];
  const answer = await request('POST', path`/admin/endpoints/${kind}/${name}/test`, { parallel: true });
  const { ok, status, latencyMs, model, error } = answer.body;
  const line = `${ok ? 'ok' : 'failed'} ${status || 'without a response'} in ${number(latencyMs)} ms` +
    (model ? `, model ${model}` : '') + (error ? `: ${error}` : '');
  if (ok) return showStatus(said, line, ...note);
  throw Object.assign(inputError(line), { errors: note, requestId: answer.headers.get('X-Request-Id') });
}

// membersOf returns the members of an endpoint that are edited here.
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
  const fields = [
    field('Kind', { tag: 'select', name: 'kind', class: 'short', options: all.map((kind) => [kind, labelOf(kind)]) }),
    field('Provider', { tag: 'select', class: 'short', options: templates.map(([title], i) => [i, title]) }),
    field('Name', { name: 'name', required: true }),
    ...bind(membersOf('text')).fields,
  ];
  const [kind, provider, name, url] = fields.map(controlOf);
  controlOf(fields.at(-1)).value = 3;
  const fill = () => {
    const [, own, start, end = kinds[kind.value][0]] = templates[provider.value];
    name.value = own;
    url.value = start && end && start + end;
  };
  kind.addEventListener('change', fill);
  provider.addEventListener('change', fill);
  fill();
  return forms.ask('Add endpoint', 'Add', (text, values) => {
    const at = ['providers', values.kind, 'endpoints', values.name.trim()];
    return bind(membersOf(values.kind)).edit(create(text, at), values, at);
  }, { fields });
}

// models returns the models of an endpoint, the default one too, with their prices.
function models(forms, { config, kind, place, of, model, listed }) {
  const members = () => kinds[kind][1].map((price) => member(labelOf(price), price, 'number'));
  const options = { text: 'In tokens of the balance. If one is a millionth of a dollar, this is in dollars for a ' +
    'million. Empty: 1, or what other input or output costs; a request costs nothing.' };
  const rowOf = (name, at) => [
    [name, name === model && tag()],
    config.names(at).map((price) => `${labelOf(price)} ${config.shown([...at, price])}`).join(', ') || 'not set',
    forms.buttons(`prices of ${name}`, `${name}, ${of}`, at, members, config.node(at) &&
      'It can still be asked for if it is the default model, or * stands for it.', options),
  ];
  const rows = listed.map((name) => rowOf(name, [...place, 'models', name]));
  const isSession = kind === 'realtime';
  if ((model || isSession) && !listed.includes(model)) {
    rows.unshift(rowOf(model || 'calls', [...place, ...isSession ? ['price'] : ['models', model]]));
  }
  const name = member('Model', [], 'text', { required: true,
    hint: 'As the provider names it. gpt-* stands for all that begin with gpt-, * for all.' });
  return [
    el('div', { class: 'bounded' }, list(`Models of ${of}`, ['Model', 'Prices'], [], rows, 'It has no models yet.')),
    rowButton('Add model', `to ${of}`, () =>
      forms.add(`model to ${of}`, [...place, 'models'], name, members(), options)),
  ];
}
