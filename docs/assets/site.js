// Small fixes of the theme, for readers who use a keyboard or a screen reader.

// The theme's dialogs have no names, and it marks the buttons of each code block as a navigation landmark.
function nameLandmarks() {
  document.querySelectorAll("nav.md-code__nav").forEach((nav) => nav.setAttribute("role", "group"));
  document.querySelectorAll("[role=dialog]:not([aria-label])").forEach((dialog) => {
    dialog.setAttribute("aria-label", dialog.dataset.mdComponent || "dialog");
  });
}

// What scrolls sideways (code, tables, tabs) can be reached, and so scrolled, with the keyboard.
function reachWhatScrolls() {
  const boxes = ".md-typeset pre > code, .md-typeset__scrollwrap, .tabbed-labels, .jp-OutputArea pre, .jp-RenderedHTML";
  document.querySelectorAll(boxes).forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  });
}

nameLandmarks();
reachWhatScrolls();
addEventListener("resize", reachWhatScrolls);
addEventListener("load", nameLandmarks);
addEventListener("load", reachWhatScrolls);
document.fonts.ready.then(reachWhatScrolls); // other letters are wider

// A program of which a part is shown: the button under it shows the rest, and hides it again.
document.querySelectorAll(".unfold").forEach((button) => {
  const folded = button.textContent;
  button.addEventListener("click", () => {
    const open = button.parentElement.classList.toggle("unfolded");
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show the part that matters" : folded;
    reachWhatScrolls();
  });
});
