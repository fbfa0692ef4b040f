// What is sold for which price of Stripe.

import { button } from './dom.js';
import { amount, list, member, nameField, section } from './members.js';

const base = ['auth', 'stripe'];
const place = [...base, 'prices'];

export function paymentsSection(forms, config) {
  const groups = (none) => ({ options: [['', none], ...config.names(['user_groups'])] });
  const members = [
    member('Group', 'group', 'text', { ...groups('none: a pack, bought once'), hint: 'Of those who subscribe.' }),
    member('Tokens', 'tokens', 'number', { hint: 'Of a pack, or in each period. Empty: those of the group.' }),
    member('Reset', 'reset', 'number', { options: [['', 'no: each period adds them'],
      ['true', 'yes: each period raises the balance to them']] }),
  ];
  const stripe = [
    member('API key', 'api_key', 'secret'),
    member('Webhook secret', 'webhook_secret', 'secret', { hint: 'Two with a space between while one is replaced.' }),
    member('Return URLs', 'return_urls', 'lines', { hint: 'Customers may be led back below these, one a line.' }),
    member('Group after a subscription', 'free_group', 'text', groups('the one before it')),
  ];
  const rows = config.names(place).map((price) => {
    const of = (name) => config.shown([...place, price, name]);
    return [price, of('group') || 'a pack', amount(of('tokens')) || 'the group’s',
      of('reset') === 'true' ? 'is raised to these' : 'gets these',
      forms.buttons(`price ${price}`, price, [...place, price], members, 'Nobody can buy it any more. Payments of ' +
        'subscriptions with it are not understood: Stripe repeats them.')];
  });
  const add = () => forms.add('price', place, nameField('Price ID', 'From Stripe’s catalog: price_…'), members);
  return section('Payments',
    [button('Add price', add), button('Edit Stripe', () => forms.edit('Stripe', base, stripe))],
    list('Prices', ['Price', 'Group', 'Tokens', 'Balance'], [2], rows, 'Nothing is sold yet.'));
}
