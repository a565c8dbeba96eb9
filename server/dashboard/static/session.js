// Who is logged in: asks for a token where the server wants one, and goes on once it is known who this is.

import { byId, setText } from "./elements.js";

export const session = { role: null };

/** Call `begin` as soon as somebody is known. */
export async function logIn(begin) {
  byId("login").addEventListener("submit", (event) => {
    event.preventDefault();
    show(begin);
  });
  byId("logout").addEventListener("click", logOut);
  // A server that is not there yet is asked again.
  for (;;) {
    try {
      return know(await ask("api/session"), begin);
    } catch {
      setText("link", "no answer; trying again …");
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
}

async function show(begin) {
  const field = byId("login-token");
  setText("login-trouble", "");
  try {
    const found = await ask("login", { token: field.value.trim() });
    field.value = "";
    know(found, begin);
  } catch (error) {
    setText("login-trouble", error instanceof TypeError ? "The server does not answer." : error.message);
    field.select();
  }
}

async function logOut() {
  await ask("logout", {});
  location.reload();
}

function know(found, begin) {
  const isKnown = found.role !== null;
  byId("login").hidden = isKnown;
  byId("content").hidden = !isKnown;
  if (!isKnown) {
    setText("link", "not logged in");
    byId("login-token").focus();
    return;
  }
  session.role = found.role;
  setText("who", found.has_login ? `${found.who} (${found.role})` : "no login: started with --insecure");
  byId("who").hidden = false;
  byId("logout").hidden = !found.has_login;
  begin();
}

async function ask(path, body) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...(body ? sent : {}), signal: AbortSignal.timeout(10_000) });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told?.message ?? `the server answered ${answer.status}`);
  return told;
}
