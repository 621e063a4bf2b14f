const choose = (target) => {
  const token = target.closest('.tok[data-i]');
  if (token) trigger('click', { index: Number(token.dataset.i) });
};
element.addEventListener('click', (event) => choose(event.target));
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(event.target); }
});
