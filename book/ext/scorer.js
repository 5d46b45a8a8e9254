// In a search: chapters before the package's own names, and first those whose title has a word that is asked for.
var Scorer = {
  objNameMatch: 3,
  objPartialMatch: 2,
  objPrio: { 0: 1, 1: 0, 2: -1 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score([, title, anchor, , score]) {
    const words = new URLSearchParams(location.search).get("q").toLowerCase().split(/\s+/);
    return score + (!anchor && words.some((word) => title.toLowerCase().includes(word)) ? 20 : 0);
  },
};
