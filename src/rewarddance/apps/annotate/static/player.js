// Plays the clips of an item together, in a loop. The server gave all of them the same length and frame rate.
"use strict";
const player = {
  videos: [], fps: 1, ready: false, playing: true, going: false, checked: 0,
  pressed: null, // what a key asked for while the clips were on their way to a time

  // `videos` are loading. They begin when `start` is called.
  open(videos, fps) {
    Object.assign(this, { videos, fps, ready: false, playing: true, going: false, pressed: null });
    document.getElementById("player").hidden = !videos.length;
    document.querySelectorAll(".for-clips").forEach((node) => { node.hidden = !videos.length; });
    for (const video of videos) {
      video.addEventListener("ended", () => { if (this.ready && this.playing && !this.going) this.go(0); });
      video.addEventListener("timeupdate", () => this.check());
    }
    this.label();
  },
  start() { this.ready = true; this.go(0); },
  get frames() { return Math.max(1, Math.round(this.videos[0].duration * this.fps)); },
  get frame() { return Math.min(this.frames - 1, Math.floor(this.videos[0].currentTime * this.fps + 1e-3)); },

  // All clips go to a time, and then play from it at the same moment.
  async go(seconds) {
    const videos = this.videos;
    this.going = true;
    for (const video of videos) video.pause();
    await Promise.all(videos.map((video) => new Promise((done) => {
      for (const event of ["seeked", "error", "loadedmetadata"]) video.addEventListener(event, done, { once: true });
      video.currentTime = seconds;
    })));
    if (videos !== this.videos) return;
    this.going = false;
    this.checked = performance.now();
    if (this.playing) for (const video of videos) this.play(video);
    this.label();
    const pressed = this.pressed;
    this.pressed = null;
    if (pressed) pressed();
  },
  play(video) {
    video.play().catch((error) => {
      if (error.name !== "NotAllowedError") return; // paused again, or replaced
      this.playing = false; // the browser wants a tap or a key first
      this.label();
    });
  },
  // Clips may drift apart where the computer is busy. They are put together again, at most once a second.
  check() {
    this.label();
    if (!this.ready || !this.playing || this.going || performance.now() - this.checked < 1000) return;
    const times = this.videos.map((video) => video.currentTime);
    const stopped = this.videos.some((video) => video.paused && !video.ended);
    if (stopped || Math.max(...times) - Math.min(...times) > 0.05) this.go(times[0]);
  },
  toggle() {
    if (!this.videos.length) return;
    if (this.going) { this.pressed = () => this.toggle(); return; }
    if (!this.ready) { for (const video of this.videos) this.play(video); return; } // some phones load only then
    this.playing = !this.playing;
    this.go(this.playing ? this.videos[0].currentTime : (this.frame + 0.5) / this.fps);
  },
  step(by) {
    if (!this.ready) return;
    if (this.going) { this.pressed = () => this.step(by); return; }
    this.playing = false;
    this.go(((this.frame + by + this.frames) % this.frames + 0.5) / this.fps);
  },
  label() {
    document.getElementById("pause-word").textContent = this.playing ? "Pause" : "Play";
    document.getElementById("moment").textContent = this.ready ? `${this.frame + 1} / ${this.frames}` : "";
  },
};
document.getElementById("pause").addEventListener("click", () => player.toggle());
document.getElementById("back").addEventListener("click", () => player.step(-1));
document.getElementById("forward").addEventListener("click", () => player.step(1));
