const player = new Audio();
let playing = null;

function stop() {
  player.pause();
  playing?.setAttribute("aria-pressed", "false");
  playing = null;
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest(".play");
  if (!button) return;
  const again = playing === button;
  stop();
  if (again) return;
  playing = button;
  button.setAttribute("aria-pressed", "true");
  player.src = button.dataset.source;
  player.play().catch((error) => {
    if (error.name === "AbortError") return; // another one was started
    if (playing === button) stop();
    button.disabled = true;
    button.title = "This browser cannot play it from here.";
  });
});
player.addEventListener("ended", stop);
player.addEventListener("pause", () => player.paused && stop()); // also at the end of a part; not where another began
