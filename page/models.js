// Models of an endpoint, and their prices.

import { el } from './dom.js';
import { labelOf, list, member, rowButton } from './members.js';

// missing are what prices are that are not there. Others are then that of input or output.
const missing = { input: '1', output: '1', second: '1', character: '1', request: '0' };

const text = 'In tokens of the balance. If one is a millionth of a dollar, this is in dollars for a million tokens.';

// modelsList returns the models of an endpoint of endpoints.js.
export function modelsList(forms, { config, place, of, model: byDefault, priced, prices }) {
  const members = () => prices.map((price) => member(labelOf(price), price, 'number', { placeholder: missing[price] }));
  const rows = priced.map(([model, at]) => {
    const further = config.names(at).filter((name) => !prices.includes(name));
    return [
      [model, model === byDefault && el('span', { class: 'badge' }, 'default'),
        further.length > 0 && el('span', { class: 'faint' }, ` with ${further.join(', ')}`)],
      ...prices.map((price) => config.shown([...at, price]) || el('span', { class: 'faint' }, missing[price] ?? '–')),
      forms.buttons(`prices of ${model}`, `${model}, ${of}`, at, members,
        config.node(at) && 'It can still be asked for if it is the default model, or * stands for it.', { text }),
    ];
  });
  const name = member('Model', [], 'text', { required: true,
    hint: 'As the provider names it. gpt-* stands for all that begin so, * for all.' });
  return [
    el('div', { class: 'bounded' }, list(`Models and prices of ${of}`, ['Model', ...prices.map(labelOf)],
      prices.map((_, i) => i + 1), rows, 'It has no models yet.')),
    rowButton('Add model', `to ${of}`, () =>
      forms.add(`model to ${of}`, [...place, 'models'], name, members(), { text })),
  ];
}
