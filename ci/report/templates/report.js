"use strict";
(() => {
  const field = document.getElementById("search");
  const said = document.getElementById("found");
  const blocks = [...document.querySelectorAll("pre.log")].map((pre) => ({
    pre, text: pre.textContent, lower: pre.textContent.toLowerCase(), details: pre.closest("details"),
    opened: pre.closest("details").open,
  }));
  const show = () => {
    const wanted = field.value.trim().toLowerCase();
    let lines = 0;
    const hits = new Map();
    for (const block of blocks) {
      block.pre.textContent = "";
      if (wanted.length < 2) {
        block.pre.textContent = block.text;
        continue;
      }
      let at = 0, here = 0;
      const out = document.createDocumentFragment();
      for (let hit = block.lower.indexOf(wanted); hit >= 0 && here < 500; hit = block.lower.indexOf(wanted, at)) {
        out.append(block.text.slice(at, hit));
        const mark = document.createElement("mark");
        mark.textContent = block.text.slice(hit, hit + wanted.length);
        out.append(mark);
        at = hit + wanted.length;
        here += 1;
      }
      out.append(block.text.slice(at));
      block.pre.append(out);
      lines += here;
      hits.set(block.details, (hits.get(block.details) || 0) + here);
    }
    for (const block of blocks) {
      const searching = wanted.length >= 2;
      const here = hits.get(block.details) || 0;
      block.details.hidden = searching && here === 0;
      block.details.open = searching ? here > 0 : block.opened;
    }
    said.textContent = wanted.length < 2 ? "" : `${lines} found`;
    const first = document.querySelector("pre.log mark");
    if (first) first.closest("pre").scrollTop = first.offsetTop - first.closest("pre").offsetTop - 40;
  };
  let timer;
  field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(show, 120); });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
})();
