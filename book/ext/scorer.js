// In a search: chapters before the package's own names, and first those whose title has a word that is asked for;
// else the earlier, which says what it is.
var Scorer = {
  objNameMatch: 3,
  objPartialMatch: 2,
  objPrio: { 0: 1, 1: 0, 2: -1 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score([page, title, anchor, , score]) {
    const words = new URLSearchParams(location.search).get("q").trim().toLowerCase().split(/\s+/);
    const named = !anchor && words.some((word) => title.toLowerCase().includes(word));
    const [, chapter] = page.match(/\/(\d+)-/) ?? [];
    return score + (named ? 20 : 0) + (chapter ? 1 - chapter / 100 : 0);
  },
};
