// Asks for a new key.

import { Attempt, path } from './api.js';
import { controlOf, dialog, el, field } from './dom.js';
import { count, given, wholeNumber } from './keytext.js';

const lifetimes = [['', 'Never'], ...[1, 7, 30, 90, 365].map((days) => [days * 86400, `In ${count(days, 'day')}`])];

// newKey makes a key as it is asked for, and shows it in view, of the Users.
export async function newKey(view) {
  const groups = await view.readGroups() ?? new Map();
  const names = [...groups.keys()];
  const value = names.find((name) => name !== 'anonymous');
  const group = field('Group', { tag: 'select', name: 'group', required: true, options: names, value });
  const tokens = field('Tokens', { name: 'tokens', hint: ' ' });
  const select = controlOf(group);
  select.onchange = () => {
    tokens.querySelector('.hint').textContent = `By default ${count(groups.get(select.value)?.tokens ?? 0, 'token')}.`;
  };
  select.onchange();
  const fields = el('div', { class: 'grid' },
    field('User ID', { name: 'userId', required: true, autocapitalize: 'none', spellcheck: 'false' }), group,
    field('Label', { name: 'label', hint: 'Optional. The holder sees it, too.' }), tokens,
    field('Expires', { tag: 'select', name: 'expiresIn', options: lifetimes }));
  const attempt = new Attempt();
  let made;
  await dialog({ title: 'New key', verb: 'Create key', fields: [fields], action: async (values) => {
    const { userId, group, label, tokens, expiresIn } = given(values);
    const { body } = await attempt.send('POST', path`/admin/keys`, { userId, group, label,
      tokens: tokens && wholeNumber(tokens, 'Tokens'), expiresIn: expiresIn && Number(expiresIn) });
    made = [`New key of ${userId}`, body.apiKey,
      `Created with ${count(body.tokensLeft, 'token')} in the group ${group}.`, userId];
  } });
  if (made) view.made(...made);
}
