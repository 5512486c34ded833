// @ts-check
// Set the theme before the first paint. Without a choice, that of the system applies.
(() => {
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be denied.
  }
})();
