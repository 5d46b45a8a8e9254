// The explorers of slmlib/explore.py on a page without a kernel: controls that switch frames.
(() => {
  const bars = (rows, longest = Math.max(...rows.map((row) => row[1]))) => {
    const table = document.createElement("table");
    table.className = "bars";
    for (const [name, length, text] of rows) {
      const row = table.insertRow();
      const head = row.appendChild(document.createElement("th"));
      head.scope = "row";
      head.textContent = name;
      const bar = row.insertCell().appendChild(document.createElement("span"));
      bar.className = "bar";
      bar.style.width = `${(100 * length) / longest}%`;
      row.insertCell().textContent = text;
    }
    return table;
  };
  const paragraph = (text) => Object.assign(document.createElement("p"), { textContent: text });

  // A transformer's parameters, and the FLOPs of one window of training by component: flops.forward_flops, times three.
  const cost = (T, C, L, V, every, written) => {
    const F = 4 * C, S = every ? T : 1;
    const full = Array.from({ length: L }, (_, i) => (i < L - 1 || written ? T : S));
    const sum = (of) => 3 * full.reduce((total, s) => total + of(s), 0);
    const block = 4 * C * C + 4 * C + 2 * C * F + F + C + 2 * C;
    return {
      parameters: 2 * V * C + V + L * block + C,
      parts: [
        ["queries, keys, values", sum((s) => 2 * s * C * C + 4 * T * C * C)],
        ["attention", sum((s) => 4 * s * T * C)],
        ["output matrix", sum((s) => 2 * s * C * C)],
        ["feed-forward", sum((s) => 4 * s * C * F)],
        ["head", 6 * S * C * V],
      ],
    };
  };

  const draw = {
    attention({ text, percent }, [block, head, at]) {
      const row = percent[block][head][at], most = row.indexOf(Math.max(...row));
      const looked = Object.assign(document.createElement("p"), { className: "looked" });
      text.forEach((character, i) => {
        const span = looked.appendChild(document.createElement("span"));
        span.textContent = character;
        span.style.setProperty("--w", row[i] / 100);
        span.classList.toggle("here", i === at);
      });
      return [looked, paragraph(`It looks most at “${text[most]}”, ${at - most} back, with ${row[most]} % of its weight.`)];
    },
    cost({ sizes }, at) {
      const [T, C, L, V] = sizes.map((of, i) => of[at[i]]), every = at[4] === 1;
      const { parameters, parts } = cost(T, C, L, V, every, at[5] === 1);
      const total = parts.reduce((all, part) => all + part[1], 0), comma = (n) => Math.floor(n).toLocaleString("en");
      const rows = parts.map(([name, flops]) => [name, flops, `${Math.round((100 * flops) / total)}%`]);
      const text = `${comma(parameters)} parameters; ${comma(total)} FLOPs a window of training, `;
      return [paragraph(`${text}${comma(total / (every ? T : 1))} a prediction.`), bars(rows)];
    },
  };

  const begin = (explorer) => {
    const controls = [...explorer.querySelectorAll("[data-axis]")], frame = explorer.querySelector(".frame");
    const templates = new Map([...explorer.querySelectorAll("template")].map((t) => [t.dataset.at, t]));
    const json = explorer.querySelector("script[type='application/json']"), data = json && JSON.parse(json.textContent);
    const show = () => {
      const at = controls.map((control) => Number(control.value));
      controls.filter((c) => c.type === "range").forEach((range) => {
        const name = JSON.parse(range.dataset.names)[range.value];
        range.setAttribute("aria-valuetext", name);
        range.parentElement.querySelector("output").textContent = name;
      });
      const paint = draw[explorer.dataset.explorer];
      frame.replaceChildren(...(paint ? paint(data, at) : [templates.get(at.join()).content.cloneNode(true)]));
    };
    for (const control of controls) {
      control.addEventListener("input", show);
      if (control.type === "button") control.addEventListener("click", () => {
        control.value = control.value === control.dataset.last ? 0 : Number(control.value) + 1;
        show();
      });
    }
    explorer.querySelectorAll("[data-play]").forEach((play) => {
      const range = explorer.querySelector("[type=range]");
      let clock = null;
      play.addEventListener("click", () => {
        clearInterval(clock);
        clock = clock ? null : setInterval(() => {
          range.value = range.value === range.max ? 0 : Number(range.value) + 1;
          show();
        }, 900);
        play.textContent = clock ? "Stop" : "Play";
      });
    });
    explorer.querySelector(".controls").hidden = false;
    show();
  };
  window.slmCost = cost; // for the test that holds it against flops.py
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explore[data-explorer]").forEach(begin));
})();
