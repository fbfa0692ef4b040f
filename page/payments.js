// Payments is being built.
export async function showPayments(content) { content.append('Payments'); }
