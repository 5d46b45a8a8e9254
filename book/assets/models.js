// Four trained models in the page, loaded when a reader asks for them: counts of order 5, an MLP, two transformers.
// window.slmModels is safetensors, gzipped, in base64: float16 weights and packed counts.
(() => {
  const here = document.currentScript.src;
  const read = async (base64) => {
    const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    return [JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), bytes.subarray(8 + length)];
  };
  const single = (half) => {
    const exponent = (half >> 10) & 31, fraction = half & 1023, sign = half & 32768 ? -1 : 1;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  };
  const weights = (bytes, [begin, end]) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset + begin, end - begin);
    return Float32Array.from({ length: (end - begin) / 2 }, (_, i) => single(view.getUint16(2 * i, true)));
  };
  const linear = (W, b, x) => {
    const y = new Float32Array(b.length), n = x.length;
    for (let i = 0, at = 0; i < y.length; i++) {
      let sum = b[i];
      for (let j = 0; j < n; j++) sum += W[at++] * x[j];
      y[i] = sum;
    }
    return y;
  };
  const rms = (x) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length + 1.1920929e-7);
  const normed = (x, g) => { const size = rms(x); return x.map((v, i) => (v / size) * g[i]); };
  const relu = (x) => x.map((v) => Math.max(v, 0));
  const softmax = (x, temperature = 1) => {
    const most = Math.max(...x), e = Array.from(x, (v) => Math.exp((v - most) / temperature));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };

  const mlp = ({ context, d_model: d }, w) => (ids) => {
    const seen = [...Array(context).fill(0), ...ids].slice(-context), x = new Float32Array(context * d);
    seen.forEach((id, t) => x.set(w["embed.weight"].subarray(id * d, (id + 1) * d), t * d));
    const h = relu(linear(w["hidden.0.weight"], w["hidden.0.bias"], x));
    const g = relu(linear(w["hidden.3.weight"], w["hidden.3.bias"], h));
    return linear(w["head.weight"], w["head.bias"], g);
  };

  // Keys and values are kept; when the window is full it begins anew with its last half, as models.generate does.
  const transformer = ({ context, d_model: C, heads: H, layers: L }, w) => {
    const D = C / H;
    let known = [], keys = [], values = [];
    const turn = (x, t) => {
      const y = new Float32Array(D), size = rms(x);
      for (let i = 0; i < D / 2; i++) {
        const angle = t * 10000 ** ((-2 * i) / D), a = x[i] / size, b = x[i + D / 2] / size;
        y[i] = a * Math.cos(angle) - b * Math.sin(angle);
        y[i + D / 2] = b * Math.cos(angle) + a * Math.sin(angle);
      }
      return y;
    };
    const step = (id) => {
      const t = known.length;
      let x = w["embed.weight"].slice(id * C, (id + 1) * C);
      for (let l = 0; l < L; l++) {
        const of = (name) => w[`blocks.${l}.${name}`];
        const qkv = linear(of("attention.qkv.weight"), of("attention.qkv.bias"), normed(x, of("norm1.weight")));
        const looked = new Float32Array(C);
        keys[l].push([]);
        values[l].push(qkv.subarray(2 * C));
        for (let h = 0; h < H; h++) {
          const q = turn(qkv.subarray(h * D, (h + 1) * D), t);
          keys[l][t].push(turn(qkv.subarray(C + h * D, C + (h + 1) * D), t));
          const scores = keys[l].map((k) => k[h].reduce((sum, v, i) => sum + v * q[i], 0) / Math.sqrt(D));
          softmax(scores).forEach((p, s) => {
            for (let i = 0; i < D; i++) looked[h * D + i] += p * values[l][s][h * D + i];
          });
        }
        const a = linear(of("attention.out.weight"), of("attention.out.bias"), looked);
        x = x.map((v, i) => v + a[i]);
        const up = linear(of("feed_forward.up.weight"), of("feed_forward.up.bias"), normed(x, of("norm2.weight")));
        const f = linear(of("feed_forward.down.weight"), of("feed_forward.down.bias"), relu(up).map((v) => v * v));
        x = x.map((v, i) => v + f[i]);
      }
      known.push(id);
      return linear(w["head.weight"], w["head.bias"], normed(x, w["norm.weight"]));
    };
    const anew = (ids) => {
      [known, keys, values] = [[], Array.from({ length: L }, () => []), Array.from({ length: L }, () => [])];
      return ids.map(step).at(-1);
    };
    let last = null, all = [];
    return (ids) => {
      const goesOn = known.length && all.length + 1 === ids.length && all.every((id, i) => id === ids[i]);
      if (!goesOn) last = anew(ids.slice(-context));
      else last = known.length < context ? step(ids.at(-1)) : anew(ids.slice(-Math.floor(context / 2)));
      all = [...ids];
      return last;
    };
  };

  // Modified Kneser-Ney, as ngrams.KneserNey has it: of lower orders an n-gram counts once for each token before it.
  const counting = (order, bytes, V) => {
    const levels = Array.from({ length: order }, () => new Map());
    for (let at = 0, gram = []; at < bytes.length;) {
      gram = gram.slice(0, bytes[at++]);
      while (gram.length < order) gram.push(bytes[at++]);
      let count = 0, scale = 1;
      do { count += (bytes[at] & 127) * scale; scale *= 128; } while (bytes[at++] > 127);
      levels[order - 1].set(String.fromCharCode(...gram), count);
    }
    for (let n = order - 1; n > 0; n--) {
      for (const gram of levels[n].keys()) {
        const shorter = gram.slice(1);
        levels[n - 1].set(shorter, (levels[n - 1].get(shorter) ?? 0) + 1);
      }
    }
    const tables = levels.map((counts) => {
      const many = [0, 0, 0, 0, 0, 0], histories = new Map();
      for (const c of counts.values()) many[Math.min(c, 5)]++;
      const y = many[1] / (many[1] + 2 * many[2]);
      const taken = [1, 2, 3].map((k) => Math.min(Math.max(k - ((k + 1) * y * many[k + 1]) / many[k], 0.1), k));
      const d = many.slice(1, 5).every(Boolean) ? [0, ...taken] : [0, 0.5, 1, 1.5];
      for (const [gram, c] of counts) {
        const h = gram.slice(0, -1), of = histories.get(h) ?? [0, 0];
        histories.set(h, [of[0] + c, of[1] + d[Math.min(c, 3)]]);
      }
      return { counts, d, histories };
    });
    return (ids) => {
      const p = new Array(V).fill(1 / V);
      tables.forEach(({ counts, d, histories }, n) => {
        if (ids.length < n) return;
        const h = String.fromCharCode(...(n ? ids.slice(-n) : [])), of = histories.get(h);
        if (!of) return;
        for (let w = 0; w < V; w++) {
          const c = counts.get(h + String.fromCharCode(w)) ?? 0;
          p[w] = (Math.max(c - d[Math.min(c, 3)], 0) + of[1] * p[w]) / of[0];
        }
      });
      return p.map(Math.log);
    };
  };

  const load = async () => {
    const [header, bytes] = await read(window.slmModels), about = JSON.parse(header.__metadata__.about);
    const { vocabulary } = about, models = about.models.map(({ name, kind, config }) => {
      const own = Object.entries(header).filter(([key]) => key.startsWith(`${name}.`));
      const w = Object.fromEntries(own.map(([key, of]) => [key.slice(name.length + 1), weights(bytes, of.data_offsets)]));
      const make = { mlp, transformer }[kind], packed = bytes.subarray(...header.counts.data_offsets);
      return { name, logits: make ? make(config, w) : counting(config.order, packed, vocabulary.length) };
    });
    return { vocabulary, models };
  };
  window.slmLoad = load;

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const visible = (c) => ({ "\n": "↵", " ": "␣" })[c] ?? c;
  const bars = (name, p, vocabulary) => {
    const rows = p.map((v, i) => [v, vocabulary[i]]).sort((a, b) => b[0] - a[0]).slice(0, 5).map(([v, c]) => {
      const bar = element("span", { className: "bar" });
      bar.style.width = `${100 * v}%`;
      const cells = [element("td", {}, bar), element("td", {}, `${Math.round(100 * v)}%`)];
      return element("tr", {}, element("th", { scope: "row" }, visible(c)), ...cells);
    });
    return element("div", {}, element("p", {}, name), element("table", { className: "bars" }, ...rows));
  };

  const begin = (explorer, { vocabulary, models }) => {
    const prompt = "ROMEO:\n", text = element("textarea", { rows: 3, value: prompt });
    const who = element("select", {}, ...models.map(({ name }, i) => element("option", { value: i }, name)));
    const heat = element("input", { type: "range", min: 0.2, max: 1.2, step: 0.1, value: 0.8 });
    const degree = element("output", {}, "0.8"), write = element("button", { type: "button" }, "Write");
    const side = element("div", { className: "side", ariaLive: "polite" }), lacking = element("p", { hidden: true });
    const out = element("pre", { ariaLive: "polite" }), speed = element("p");
    who.value = models.length - 1;
    const known = () => [...text.value].filter((c) => vocabulary.includes(c)).join("") || prompt;
    const ids = (s) => [...s].map((c) => vocabulary.indexOf(c));
    const expect = () => {
      const seen = ids(known()), unknown = new Set([...text.value].filter((c) => !vocabulary.includes(c)));
      lacking.hidden = !unknown.size;
      lacking.textContent = `Not known to the models, and left out: ${[...unknown].join(" ")}`;
      side.replaceChildren(...models.map(({ name, logits }) => bars(name, softmax(logits(seen)), vocabulary)));
    };
    let turn = 0, writing = false, later;
    const go = async () => {
      const mine = ++turn;
      writing = out.ariaBusy = !writing;
      write.textContent = writing ? "Stop" : "Write";
      if (!writing) return;
      const { logits } = models[who.value], all = ids(known()), began = performance.now();
      out.textContent = known();
      for (let n = 1; mine === turn && n <= 1000; n++) {
        let draw = Math.random(), next = -1;
        const p = softmax(logits(all), Number(heat.value));
        while (draw > 0 && next < p.length - 1) draw -= p[++next];
        all.push(next);
        out.textContent += vocabulary[next];
        speed.textContent = `${Math.round((1000 * n) / (performance.now() - began))} characters a second`;
        if (n % 2 === 0) await new Promise((done) => setTimeout(done));
      }
      if (mine !== turn) return; // stopped, or begun anew
      writing = out.ariaBusy = false;
      write.textContent = "Write";
    };
    text.addEventListener("input", () => { // once typing pauses: a long text takes half a second
      clearTimeout(later);
      later = setTimeout(expect, 200);
    });
    heat.addEventListener("input", () => { degree.textContent = heat.value; });
    write.addEventListener("click", go);
    const label = (name, ...what) => element("label", {}, `${name} `, ...what);
    const controls = element("div", { className: "controls" },
      label("Your text", text), label("Who goes on", who), label("Temperature", heat, degree), write);
    explorer.querySelectorAll(".frame, .controls, template").forEach((part) => part.remove());
    explorer.querySelector(".load").replaceWith(element("div", { className: "live" }, controls, lacking, side, out, speed));
    expect();
    text.focus();
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const explorer of document.querySelectorAll(".explore[data-explorer=models]")) {
      const button = explorer.querySelector(".load button");
      explorer.querySelector(".load").hidden = false;
      button.addEventListener("click", () => {
        button.disabled = true;
        button.textContent = "Loading …";
        const script = element("script", { src: new URL("models-data.js", here).href });
        const cannot = () => { button.textContent = "This browser cannot unpack the models."; };
        script.addEventListener("load", () => load().then((loaded) => begin(explorer, loaded), cannot));
        script.addEventListener("error", () => { button.textContent = "The models are not part of this copy of the book."; });
        document.head.append(script);
      });
    }
  });
})();
