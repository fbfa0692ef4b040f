// The views, in the order of the navigation. show(content, context) fills an empty element. Its context has the signal
// that ends with the view, keepUnsaved(f), where f() reports whether leaving loses something, and a user to look for.
import { showConfig } from './config.js';
import { showHealth } from './health.js';
import { showOverview } from './overview.js';
import { showPayments } from './payments.js';
import { showTenants } from './tenants.js';
import { showTryIt } from './tryit.js';
import { showUsers } from './users.js';

export const views = [
  { name: 'Overview', show: showOverview },
  { name: 'Users', show: showUsers },
  { name: 'Config', show: showConfig },
  { name: 'Tenants', show: showTenants, operator: true },
  { name: 'Payments', show: showPayments },
  { name: 'Try it', show: showTryIt },
  { name: 'Health', show: showHealth, operator: true },
];
