// The view Payments: what users have paid, and what was taken back, newest first.

import { path, query, request } from './api.js';
import { button, el, messages, number, table, time } from './dom.js';

const pageSize = 50;

const kinds = new Map([
  ['payment', 'Payment'], ['subscription', 'Subscription'], ['refund', 'Refund'], ['dispute', 'Dispute'],
]);

export async function showPayments(content, { signal }) {
  const rows = [];
  const list = el('div');
  content.append(
    el('p', { class: 'faint' }, 'What users have paid by Stripe and what was taken back: the last 10,000 entries.'),
    list, messages());
  await load(null);

  async function load(after) {
    const { body } = await request('GET', path`/admin/payments` + query({ limit: pageSize, after }), { signal });
    rows.push(...body.payments.map(rowOf));
    if (rows.length === 0) {
      list.replaceChildren(el('p', {}, 'Nobody has paid yet. What you sell is in the config, at auth.stripe.prices.'));
      return;
    }
    const heads = ['Time', 'User', 'Kind', 'Price', 'Tokens', 'Group', 'Stripe'];
    list.replaceChildren(table('Payments', heads, rows, { numeric: [4] }));
    if (body.next) list.append(button('More', () => load(body.next)));
  }
}

function rowOf(payment) {
  const { at, userId, kind, price, tokens, group, stripeId, unassigned } = payment;
  return [
    time(at), userId ?? '',
    [kinds.get(kind) ?? kind, unassigned ? el('strong', { class: 'bad' }, ' unassigned: nobody got the tokens') : ''],
    price ?? '', (tokens > 0 ? '+' : '') + number(tokens), group ?? '', el('code', {}, stripeId),
  ];
}
