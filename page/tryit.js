// TryIt is being built.
export async function showTryIt(content) { content.append('TryIt'); }
