// Groups of users: what the holders of their keys get.

import { button } from './dom.js';
import { amount, list, member, nameField, section } from './members.js';

const place = ['user_groups'];

export function groupsSection(forms, config) {
  const rows = config.names(place).map((name) => {
    const base = [...place, name];
    const of = (...path) => amount(config.shown([...base, ...path]));
    return [name, of('tokens') || '0', of('rate_limit') && `${of('rate_limit')} in ${of('rate_limit_window')} s`,
      of('refill') && `to ${of('refill', 'tokens')}, each ${of('refill', 'every').replace(/^\d.*/, '$& s')}`,
      of('models') ? few(config.list([...base, 'models'])) : 'all', of('max_concurrent'),
      forms.buttons(`group ${name}`, name, base, members,
        'Its keys are refused until the group is back or they are moved to another one. Their balances stay.')];
  });
  const add = () => forms.add('group', place,
    nameField('Name', 'Such as free or pro. The group anonymous is for visitors who do not sign in.'), members);
  return section('Groups', button('Add group', add),
    list('Groups', ['Group', 'Tokens', 'Rate limit', 'Refill', 'Models', 'At a time'], [1, 5], rows,
      'Every key belongs to a group. Add one, then you can give out keys.'));
}

const few = (names) => names.length > 3 ? `${names.length} models` : names.join(', ') || 'none';

const members = [
  member('Tokens', 'tokens', 'number', { hint: 'The balance of a new key.' }),
  member('Requests at a time', 'max_concurrent', 'number', { hint: 'Of one key. Empty: no limit.' }),
  member('Rate limit', 'rate_limit', 'number', { hint: 'Requests of one key in the window. Empty: no limit.' }),
  member('Window', 'rate_limit_window', 'number', { hint: 'In seconds.' }),
  member('Refill to', ['refill', 'tokens'], 'number', { hint: 'A lower balance is raised to this. Empty: never.' }),
  member('Refill every', ['refill', 'every'], 'number', { inputmode: 'text', hint: 'day, month, or seconds.' }),
  member('Models', 'models', 'lines', { hint: 'One a line; gpt-* is all that begin with gpt-. Empty: all.' }),
];
