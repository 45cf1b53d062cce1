// Shares a recording: as a file where the device can do that, otherwise as a link.

import { element, size, toast } from "./dom.js";
import { pathOf } from "./events.js";
import { t } from "./texts.js";

const BYTES_MAX = 100_000_000; // a larger file is shared as a link, because the browser holds it in memory

/** @type {File | null} */
let ready = null; // the file of an attempt that took longer than browsers allow after a press

/** @param {{ name: string, bytes: number }} recording */
export async function share({ name, bytes }) {
  const link = new URL(`./#play=${encodeURIComponent(name)}`, location.href).href;
  const probe = new File([], name, { type: "video/mp4" });
  if (bytes <= BYTES_MAX && navigator.canShare?.({ files: [probe] })) {
    const isReady = ready?.name === name;
    if (!isReady) {
      toast(`${t("preparing")} ${size(bytes)}`);
      const response = await fetch(pathOf(name));
      if (!response.ok) return toast(`HTTP ${response.status}`);
      ready = new File([await response.blob()], name, { type: "video/mp4" });
      toast("");
    }
    return pass({ files: [/** @type {File} */ (ready)], title: name });
  }
  if ("share" in navigator) return pass({ title: name, url: link });
  const isCopied = await copy(link);
  toast(t(isCopied ? "link_copied" : "link_shown", { link }));
}

/** @param {ShareData} data */
async function pass(data) {
  try {
    await navigator.share(data);
    ready = null;
  } catch (error) {
    const { name, message } = /** @type {Error} */ (error);
    if (name === "NotAllowedError") toast(t("share_again"));
    else if (name !== "AbortError") toast(message);
  }
}

/** @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages over plain HTTP have no clipboard, but they can copy a selected text.
    const field = element("textarea", { value: text, readOnly: true, className: "unseen" });
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}
