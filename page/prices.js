// Payments: the keys of Stripe, and what is sold for its prices.

import { button, el, table } from './dom.js';
import { amount, label, masked, member, rowButton, section } from './members.js';

const base = ['auth', 'stripe'];
const place = [...base, 'prices'];

export function paymentsSection(forms, config) {
  const of = (...path) => config.shown([...base, ...path]);
  const rows = config.names(place).map((price) => [price, of('prices', price, 'group') || 'a pack',
    amount(of('prices', price, 'tokens')) || 'the group’s', of('prices', price, 'reset') === 'true' ? 'raised to these' : 'added',
    el('div', { class: 'actions' },
      rowButton('Edit', price, () => forms.edit({ title: `Price ${price}`, base: [...place, price], verb: 'Save price',
        members: membersOf(config) })),
      rowButton('Remove', price, () => forms.remove(`the price ${price}`, [...place, price],
        'Nobody can buy it any more, and renewals of its subscriptions bring no tokens.'), { class: 'danger' }))]);
  const secret = (name) => of(name) ? masked(config.joined([...base, name], ' '), label(name)) : 'none';
  return section('Payments’ prices', el('div', { class: 'actions' }, button('Add price', () => add(forms, config)),
    button('Edit Stripe', () => editStripe(forms, config))),
  el('dl', {},
    el('dt', {}, 'API key'), el('dd', {}, secret('api_key')),
    el('dt', {}, 'Webhook secret'), el('dd', {}, secret('webhook_secret')),
    el('dt', {}, 'Return URLs'), el('dd', {}, config.list([...base, 'return_urls']).join(', ') || 'none'),
    el('dt', {}, 'Afterwards'), el('dd', {}, of('free_group') || 'the group before it')),
  rows.length
    ? table('Prices', ['Price', 'Group', 'Tokens', 'Balance', 'Change'], rows, { numeric: [2], hideCaption: true })
    : el('p', { class: 'faint' }, 'Nothing is sold yet.'));
}

const groupsOf = (config, none) => ({ options: [['', none], ...config.names(['user_groups']).map((name) => [name, name])] });

const membersOf = (config) => [
  member('Group', 'group', 'text', { ...groupsOf(config, 'none: a pack, which is bought once'),
    hint: 'Of those who pay for a subscription.' }),
  member('Tokens', 'tokens', 'number', { hint: 'Of one pack, or in each period. Empty: those of the group.' }),
  member('Reset', 'reset', 'flag', { hint: 'Each period raises the balance to these tokens, in the place of adding them.' }),
];

function add(forms, config) {
  const name = member('Price ID', [], 'text', { hint: 'From Stripe’s catalog: price_…' });
  return forms.add({ title: 'New price', verb: 'Add price', path: place, name, members: membersOf(config) });
}

function editStripe(forms, config) {
  return forms.edit({ title: 'Stripe', base, verb: 'Save Stripe', members: [
    member('API key', 'api_key', 'secret'),
    member('Webhook secret', 'webhook_secret', 'secrets', { hint: 'Several with spaces between, while one is replaced.' }),
    member('Return URLs', 'return_urls', 'lines', { hint: 'Below which customers may be led back, one a line.' }),
    member('Group after a subscription', 'free_group', 'text', groupsOf(config, 'the one before it')),
  ] });
}
