// What no message holds stands in the page as the server has it now: it is asked for anew.

/** The element of a page, as it is now; nothing where the page does not come. */
export async function element(address, selector) {
  const answer = await fetch(address, { headers: { accept: "text/html" }, cache: "no-store" });
  const page = answer.ok && new DOMParser().parseFromString(await answer.text(), "text/html");
  return page && page.querySelector(selector);
}

/** A function that asks for an element of a page and hands it to `put`. One question at a time; what
    happens meanwhile asks again. */
export function refresher(address, selector, put) {
  let asking = false;
  let again = false;
  return async function ask() {
    again = asking;
    if (asking) return;
    asking = true;
    const now = await element(address, selector).catch(() => null);
    asking = false;
    if (now) put(now);
    if (again) ask();
  };
}
