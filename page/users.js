// Users is being built.
export async function showUsers(content) { content.append('Users'); }
