// Endpoints of the providers.

import { path, request } from './api.js';
import { button, controlOf, el, field, inputError, messages, number, showStatus } from './dom.js';
import { remove, set } from './json.js';
import { Config, create, facts, fieldOf, labelOf, masked, member, rowButton, section } from './members.js';
import { modelsList } from './models.js';

// kinds are the members of providers that the gateway uses: how URLs end, and what models have prices of.
const kinds = new Map([
  ['text', { end: 'chat/completions', prices: ['input', 'output', 'cached_input', 'cache_write'] }],
  ['embeddings', { end: 'embeddings', prices: ['input'] }],
  ['transcription', { end: 'audio/transcriptions', prices: ['second', 'input', 'audio_input', 'output'] }],
  ['speech', { end: 'audio/speech', prices: ['character'] }],
  ['images', { end: 'images/generations', prices: ['input', 'image_input', 'output'] }],
  ['moderation', { end: 'moderations', prices: ['request'] }],
  ['realtime', { prices: ['input', 'cached_input', 'audio_input', 'output', 'audio_output', 'second'] }],
]);

const all = [...kinds.keys()];

// templates are what a new endpoint begins with: [title, name, start of the URL, its end if that is not the kind's].
const templates = [
  ['OpenAI', 'openai', 'https:' + '//api.openai.com/v1/'],
  ['Anthropic', 'anthropic', 'https:' + '//api.anthropic.com/v1/', 'messages'],
  ['Ollama', 'ollama', 'http:' + '//localhost:11434/v1/'],
  ['vLLM', 'vllm', 'http:' + '//localhost:8000/v1/'],
  ['Another one', '', ''],
];

const modelMember = (kind) => kind === 'realtime' ? 'model' : 'default_model';

// endpointsOf reads the endpoints of a kind. of tells a screen reader which one it is; priced is [model, place] of all
// that has prices, also of the default model.
function endpointsOf(config, kind) {
  return config.names(['providers', kind, 'endpoints']).map((name) => {
    const place = ['providers', kind, 'endpoints', name];
    const isSession = kind === 'realtime';
    const model = config.shown([...place, modelMember(kind)]);
    const priced = config.names([...place, 'models']).map((one) => [one, [...place, 'models', one]]);
    if ((model || isSession) && !priced.some(([one]) => one === model)) {
      priced.unshift([model || 'calls', [...place, ...isSession ? ['price'] : ['models', model]]]);
    }
    return { config, kind, name, place, of: `${name} (${kind})`, model, priced, prices: kinds.get(kind).prices };
  });
}

// modelsOf returns the names of the endpoints' models, at most 50.
export function modelsOf(config) {
  const endpoints = all.flatMap((kind) => endpointsOf(config, kind));
  const models = endpoints.flatMap(({ model, place }) => [model, ...config.names([...place, 'models'])]);
  return [...new Set(models)].filter(Boolean).slice(0, 50);
}

export function endpointsSection(forms, config) {
  const lists = all.map((kind) => endpointsOf(config, kind)).filter((list) => list.length > 0);
  return section('Endpoints', button('Add endpoint', () => add(forms)), lists.length
    ? lists.map((list) => [el('h3', {}, labelOf(list[0].kind)), list.map((one) => card(forms, one, list.length > 1))])
    : el('p', { class: 'faint' }, 'The gateway has no provider yet whose models it could offer.'));
}

// card returns an endpoint with its buttons and models. Of several one can be the default.
function card(forms, one, isOfSeveral) {
  const { config, kind, name, place, of } = one;
  const byDefault = ['providers', kind, 'default'];
  const isDefault = config.shown(byDefault) === name;
  const operators = config.shown([...place, 'api_key_name']);
  const said = messages();
  return el('article', { class: 'endpoint' },
    el('div', { class: 'head' },
      el('h4', {}, name, isDefault && el('span', { class: 'badge' }, 'default')),
      el('div', { class: 'actions' },
        rowButton('Test', of, () => test(forms, one, said)),
        rowButton('Edit', of, () => edit(forms, one)),
        isOfSeveral && !isDefault && rowButton('Make default', of, () =>
          forms.ask(`Make ${of} the default`, 'Make default', (text) => set(text, byDefault, JSON.stringify(name)),
            { text: 'Requests whose model it has go to it first.' })),
        rowButton('Remove', of, () => forms.remove(`endpoint ${of}`, place, 'Its key, models and prices go, too.',
          (text) => isDefault ? remove(text, byDefault) : text), { class: 'danger' }))),
    said,
    facts(['URL', el('code', {}, config.shown([...place, 'url']) || 'the provider’s')],
      ['Key', operators ? `the operator’s ${operators}` : masked(config.shown([...place, 'api_key']), `key of ${of}`)]),
    modelsList(forms, one));
}

// test asks the server whether the endpoint, as it is saved, works.
async function test(forms, one, said) {
  const saved = new Config(forms.editor.saved()).shown(one.place);
  if (!saved) throw inputError('Save first: a test asks the endpoint as it is saved.');
  const note = saved === one.config.shown(one.place) ? [] : ['The endpoint was tested without what is not saved yet.'];
  const answer = await request('POST', path`/admin/endpoints/${one.kind}/${one.name}/test`, { parallel: true });
  const { ok, status, latencyMs, model, error } = answer.body;
  const line = `${ok ? 'ok' : 'failed'} ${status || 'without a response'} in ${number(latencyMs)} ms` +
    (model ? `, model ${model}` : '') + (error ? `: ${error}` : '');
  if (ok) return showStatus(said, line, ...note);
  throw Object.assign(inputError(line), { errors: note, requestId: answer.headers.get('X-Request-Id') });
}

// edit asks for members of an endpoint.
function edit(forms, { kind, place, of }) {
  return forms.edit(`endpoint ${of}`, place, [
    member('URL', 'url', 'text', { inputmode: 'url' }),
    member('API key', 'api_key', 'secret'),
    member('Operator’s key', 'api_key_name', 'text', { hint: 'The name of one, in the place of an API key.' }),
    member('Default model', modelMember(kind), 'text', { hint: 'Of requests that name none.' }),
    kind !== 'realtime' && member('Bytes per token', 'bytes_per_token', 'number',
      { hint: 'Decides what a request is held for, not what it costs. 3 is usual.' }),
  ].filter(Boolean));
}

// add asks for a new endpoint.
function add(forms) {
  const fields = [
    field('Kind', { tag: 'select', name: 'kind', options: all.map((kind) => [kind, labelOf(kind)]) }),
    field('Provider', { tag: 'select', options: templates.map(([title], i) => [i, title]) }),
    field('Name', { name: 'name', required: true }),
    field('URL', { name: 'url', inputmode: 'url', hint: 'With its whole path.' }),
    fieldOf(member('API key', [], 'secret'), 'key', ''),
    field('Default model', { name: 'model', hint: 'Of requests that name none.' }),
  ];
  const [kind, provider, name, url] = fields.map(controlOf);
  const fill = () => {
    const [, own, start, end = kinds.get(kind.value).end] = templates[provider.value];
    name.value = own;
    url.value = start && end ? start + end : '';
  };
  kind.addEventListener('change', fill);
  provider.addEventListener('change', fill);
  fill();
  return forms.ask('Add endpoint', 'Add', (text, values) =>
    create(text, ['providers', values.kind, 'endpoints', values.name.trim()], {
      url: values.url.trim() || undefined,
      api_key: values.key.trim() || undefined,
      [modelMember(values.kind)]: values.model.trim() || undefined,
      bytes_per_token: values.kind === 'text' ? 3 : undefined,
    }), { fields });
}
