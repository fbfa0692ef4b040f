// Groups of users: what the holders of their keys get.

import { button, el, table } from './dom.js';
import { modelsOf } from './endpoints.js';
import { amount, member, rowButton, section } from './members.js';

export function groupsSection(forms, config) {
  const groups = config.names(['user_groups']);
  const rows = groups.map((name) => {
    const of = (...path) => config.shown(['user_groups', name, ...path]);
    return [name, amount(of('tokens')) || '0', rateOf(of), refillOf(of), modelNamesOf(config, name),
      amount(of('max_concurrent')), el('div', { class: 'actions' },
        rowButton('Edit', name, () => edit(forms, config, name)),
        rowButton('Remove', name, () => remove(forms, name), { class: 'danger' }))];
  });
  return section('Groups', button('Add group', () => add(forms, config)), rows.length
    ? table('Groups', ['Group', 'Tokens', 'Rate limit', 'Refill', 'Models', 'At a time', 'Change'], rows,
      { numeric: [1, 5], hideCaption: true })
    : el('p', { class: 'faint' }, 'Every key belongs to a group. Add one, then you can give out keys.'));
}

function rateOf(of) {
  const limit = of('rate_limit');
  return limit && `${amount(limit)} in ${amount(of('rate_limit_window')) || '?'} s`;
}

function refillOf(of) {
  const every = of('refill', 'every');
  return every && `to ${amount(of('refill', 'tokens'))}, each ${/^\d/.test(every) ? `${amount(every)} s` : every}`;
}

// modelNamesOf returns the first models of a group, and how many more it has.
function modelNamesOf(config, name) {
  const path = ['user_groups', name, 'models'];
  if (!config.node(path)) return 'all';
  const models = config.list(path);
  return models.slice(0, 3).join(', ') + (models.length > 3 ? ` and ${models.length - 3} more` : '') || 'none';
}

const membersOf = (config) => [
  member('Tokens', 'tokens', 'number', { hint: 'The balance of a new key.' }),
  member('Rate limit', 'rate_limit', 'number', { hint: 'Requests of one key in a window. Empty: no limit.' }),
  member('Window in seconds', 'rate_limit_window', 'number'),
  member('Refill to', ['refill', 'tokens'], 'number', { hint: 'Raises a lower balance to this. Empty: no refill.' }),
  member('Refill every', ['refill', 'every'], 'period', { hint: 'day, month, or a number of seconds.' }),
  modelsMember(config),
  member('Requests at a time', 'max_concurrent', 'number', { hint: 'Of one key. Empty: no limit.' }),
];

// modelsMember describes the models of a group. Those of the endpoints are buttons that add or remove a line.
function modelsMember(config) {
  const choices = el('div', { class: 'actions choices', role: 'group', 'aria-label': 'Models of the endpoints' });
  choices.append(...modelsOf(config).map((model) => button(model, () => {
    const area = choices.parentElement.querySelector('textarea');
    const lines = area.value.split('\n').map((line) => line.trim()).filter(Boolean);
    const others = lines.filter((line) => line !== model);
    area.value = (others.length < lines.length ? others : [...others, model]).join('\n');
  })));
  return member('Models', 'models', 'lines', { more: choices.children.length ? choices : undefined,
    hint: 'That they may ask for, one a line; gpt-* stands for all that begin so. Empty: all.' });
}

function edit(forms, config, name) {
  return forms.edit({ title: `Group ${name}`, base: ['user_groups', name], members: membersOf(config),
    verb: 'Save group' });
}

function add(forms, config) {
  const name = member('Name', [], 'text', {
    hint: 'Such as free or pro. The group anonymous is for visitors who do not sign in.' });
  return forms.add({ title: 'New group', verb: 'Add group', path: ['user_groups'], name, members: membersOf(config) });
}

function remove(forms, name) {
  return forms.remove(`the group ${name}`, ['user_groups', name], 'Its keys are refused until the group is back or they ' +
    'are moved to another one. Their balances stay.');
}
