// The frame of the page: signing in and out, the navigation, the choice of the tenant, and which view is shown.

import * as api from './api.js';
import { button, clearMessages, controlOf, dialog, el, field, form, inputError, messages, showError } from './dom.js';
import { views } from './views.js';

// Only one of them is in the document at a time, so that each name in it is found once: the gate, or the other two.
const gate = el('main', { id: 'sign-in' });
const header = el('header');
const main = el('main', { id: 'view', tabindex: '-1' });

let present = null; // the view on display: its name, and unsaved(), which reports whether leaving it loses something
let ending = new AbortController(); // ends its requests
let tenants = []; // that the operator may choose from
const dialogs = []; // that wait until the user has signed in again

// A token that a header can carry is visible ASCII (RFC 9110, section 5.5).
const carried = /^[\x21-\x7e]+$/;

function showGate() {
  dialogs.push(...document.querySelectorAll('dialog')); // two requests may be refused
  document.body.replaceChildren(gate);
  gate.querySelector('[name=token]').focus();
}

function buildGate() {
  const tenant = field('Tenant', { name: 'tenant', autocomplete: 'username', autocapitalize: 'none',
    spellcheck: 'false', hint: 'Leave it empty if you are the operator.' });
  const token = field('Token', { name: 'token', type: 'password', autocomplete: 'current-password' });
  gate.replaceChildren(el('h1', {}, 'Tollgate'), form([tenant, token], 'Sign in', async (values, node) => {
    await signIn(values.tenant.trim(), values.token.trim());
    node.reset();
  }));
}

async function signIn(tenant, token) {
  if (token === '') throw inputError('Enter the token.');
  if (!carried.test(token)) {
    throw inputError('No token has such characters: look for spaces, line breaks and letters with accents.');
  }
  const headers = { Authorization: 'Bearer ' + token };
  if (tenant) await api.request('GET', api.rootPath`/${tenant}/admin/config/history`, { headers });
  // A tenant's own token is not tried on the operator's routes, where it would count as a wrong one.
  const operator = !tenant || !token.startsWith('adm_') && await opens('/admin/tenants', headers);
  const before = api.currentTenant();
  const same = present && api.isOperator() === operator && (!tenant || tenant === before);
  api.signIn(token, same ? before : tenant, operator);
  if (operator) await loadTenants();
  document.body.replaceChildren(header, main);
  const waiting = dialogs.splice(0);
  if (same && api.currentTenant() === before) return waiting.forEach(reopen); // the view is as it was left
  end(); // the view of somebody else
  buildHeader();
  main.focus();
  await route();
}

function reopen(box) {
  box.removeAttribute('open');
  document.body.append(box);
  box.showModal();
}

const opens = (url, headers) => api.request('GET', url, { headers }).then(() => true, (error) => {
  if (error.status !== 401) throw error;
  return false;
});

// loadTenants reads which tenants exist, and keeps the present one if it is among them.
export async function loadTenants() {
  tenants = (await api.request('GET', '/admin/tenants')).body.tenants;
  if (!tenants.includes(api.currentTenant())) api.chooseTenant(tenants[0] ?? '');
  fillTenants();
  return tenants;
}

function fillTenants(select = header.querySelector('select')) {
  select?.replaceChildren(...tenants.map((id) => el('option', { selected: id === api.currentTenant() }, id)));
}

function buildHeader() {
  const operator = api.isOperator();
  let choice = el('span', { class: 'tenant' }, api.currentTenant());
  if (operator) {
    choice = field('Tenant', { tag: 'select' });
    const select = controlOf(choice);
    fillTenants(select);
    select.addEventListener('change', async () => {
      if (await mayLeave()) openTenant(select.value);
      else select.value = api.currentTenant();
    });
  }
  header.replaceChildren(
    el('div', { class: 'bar' }, el('strong', {}, 'Tollgate'), choice, button('Sign out', leaveForGood)),
    el('nav', { 'aria-label': 'Views' }, views.filter((view) => operator || !view.operator).map((view) =>
      el('a', { href: hashOf(view.name) }, view.name))));
}

// openTenant shows a view of another tenant: the present one unless name says which.
export function openTenant(tenant, name = present.name) {
  api.chooseTenant(tenant);
  end();
  fillTenants();
  if (location.hash === hashOf(name)) route();
  else open(name);
}

function end() {
  ending.abort();
  present = null;
}

async function leaveForGood() {
  if (!await mayLeave()) return;
  end();
  api.signIn('', '', false);
  header.replaceChildren();
  main.replaceChildren();
  showGate();
}

const hashOf = (name) => '#' + encodeURIComponent(name.toLowerCase().replaceAll(' ', '-'));

// addressOf returns the address of a view that shows a user.
export const addressOf = (name, user) => hashOf(name) + api.query({ user });

function open(name) { location.hash = hashOf(name); }

async function mayLeave() {
  if (!present?.unsaved()) return true;
  return dialog({ title: 'Leave without saving?', text: 'What you have changed here is not saved.', verb: 'Leave',
    danger: true });
}

// route shows the view that the address names, the first one if it names none.
async function route() {
  if (gate.isConnected) return;
  const allowed = views.filter((view) => api.isOperator() || !view.operator);
  const [hash, asked] = location.hash.split('?');
  let view = allowed.find((one) => hashOf(one.name) === hash) ?? allowed[0];
  if (!api.currentTenant() && !view.operator) view = allowed.find((one) => one.operator); // no tenant exists yet
  if (present?.name === view.name && present.hash === location.hash) return;
  if (document.querySelector('dialog[open]') || !await mayLeave()) {
    history.replaceState(null, '', present.hash);
    return;
  }
  end();
  const { signal } = ending = new AbortController();
  const mine = present = { name: view.name, hash: location.hash || hashOf(view.name), unsaved: () => false };
  for (const link of header.querySelectorAll('nav a')) {
    link.setAttribute('aria-current', link.textContent === view.name ? 'page' : 'false');
  }
  document.title = `${view.name} · Tollgate`;
  const content = el('div', { class: 'view' });
  main.replaceChildren(el('h1', {}, view.name), messages(), content);
  try {
    await view.show(content, { signal, keepUnsaved: (unsaved) => { mine.unsaved = unsaved; },
      user: new URLSearchParams(asked).get('user') ?? '' });
  } catch (error) {
    if (!signal.aborted) showError(main, error);
  }
}

api.whenUnauthorized(() => {
  gate.querySelector('[name=tenant]').value = api.isOperator() ? '' : api.currentTenant();
  showGate();
  showError(gate.querySelector('form'),
    inputError('The token is no longer accepted. Sign in again: what you typed is kept.'));
});
addEventListener('hashchange', () => { clearMessages(main); route(); });
addEventListener('beforeunload', (event) => {
  if (present?.unsaved() || document.querySelector('dialog[open]')) event.preventDefault();
});
buildGate();
showGate();
