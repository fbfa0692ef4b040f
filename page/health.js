// The view Health, for the operator: the process that responds, and its Redis.

import { request } from './api.js';
import { el, messages, number, showError, table } from './dom.js';

const interval = 5000; // ms between two looks

export async function showHealth(content, { signal }) {
  const state = el('div');
  const place = messages();
  content.append(place, state,
    el('p', { class: 'faint' }, 'Updated every 5 s. Behind a load balancer each may be of another process.'));
  const look = async () => {
    try {
      const { body } = await request('GET', '/admin/status', { signal, parallel: true });
      place.replaceChildren();
      state.replaceChildren(...render(body));
    } catch (error) {
      if (!signal.aborted) showError(place, error);
    }
  };
  await look();
  const again = async () => {
    if (signal.aborted) return;
    if (!document.hidden) await look();
    setTimeout(again, interval);
  };
  setTimeout(again, interval);
}

function render(status) {
  const { version, uptime, redis, connections, streams, sessions, drains, pools } = status;
  const nodes = redis.nodes.map(({ address, role, up, latencyMs }) => [
    el('code', {}, address), role,
    el('span', { class: up ? 'good' : 'bad' }, up ? '● up' : '✕ does not respond'),
    up ? number(latencyMs) + ' ms' : '–',
  ]);
  const used = Object.entries(pools).map(([name, pool]) => [
    name.replaceAll('_', ' '), ...[pool.used, pool.max].map(/bytes|bodies/.test(name) ? bytes : number),
  ]);
  return [
    el('div', { class: 'cards' },
      card('Version', version), card('Up for', duration(uptime)),
      card('Connections', `${number(connections.open)} of ${number(connections.max)}`),
      card('Streams', number(streams)), card('Realtime sessions', number(sessions)), card('Drains', number(drains))),
    el('section', {}, el('h2', {}, `Redis: ${topologies.get(redis.topology) ?? redis.topology}`),
      table('Servers of Redis', ['Address', 'Role', 'State', 'Latency'], nodes, { numeric: [3], hideCaption: true })),
    el('section', {}, el('h2', {}, 'Pools'),
      table('What all requests share', ['Pool', 'Used', 'Of'], used, { numeric: [1, 2] })),
  ];
}

const topologies = new Map([['single', 'one server'], ['sentinel', 'Sentinel'], ['cluster', 'Redis Cluster']]);

const card = (name, value) =>
  el('div', { class: 'card' }, el('div', { class: 'faint' }, name), el('div', { class: 'figure' }, value));

const bytes = (n) => (n < 1 << 20 ? number(n / 1024) + ' KiB' : number(n / (1 << 20)) + ' MiB');

const lengths = new Intl.DurationFormat('en', { style: 'narrow' });

const duration = (seconds) => lengths.format({ days: Math.floor(seconds / 86400),
  hours: Math.floor(seconds / 3600) % 24, minutes: Math.floor(seconds / 60) % 60, seconds: seconds % 60 });
