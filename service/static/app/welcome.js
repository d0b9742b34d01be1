// What a first visitor sees: what this is, and three ways to begin.
import { html } from "../vendor/preact.js";
import { status } from "./api.js";
import { asCurl, asPython } from "./format.js";
import { Commands, Manual } from "./parts.js";

export function Welcome() {
  const middle = (status.value.scale[0] + status.value.scale[1]) / 2 || 4;
  const rating = { user_id: "ann", item_id: "dune", rating: middle };
  const program = asPython(`foldin.rate(${JSON.stringify(rating)})`, 'print(foldin.predict("ann", "dune").rating)', 'print(foldin.recommend("ann", n=5).items)');
  return html`<section class="welcome">
    <h1>Foldin recommends, and learns from every rating the moment it arrives.</h1>
    <p>Nothing is known yet. Three ways to begin:</p>
    <div class="ways">
      <article class="panel"><h2>Watch a player</h2>
        <p>Simulated users rate what was predicted, and the error falls before your eyes. Stop this stack, and start it again by the same command as before, with <code>--play</code> in place of <code>--no-play</code>: with another <code>--data</code> another stack would begin. In containers:</p>
        <pre>docker compose --profile play up --detach</pre></article>
      <article class="panel"><h2>Load your file</h2>
        <p>CSV with users, items and ratings. You see what it was taken for, and which scale it has, before anything is stored.</p>
        <p><a class="button" href="#/data/import">Choose a file</a></p>
        <pre>foldin import ratings.csv</pre></article>
      <article class="panel"><h2>Three calls</h2>
        <pre>${[
          asCurl("POST", "/ratings", rating),
          asCurl("GET", "/predict?user_id=ann&item_id=dune"),
          asCurl("GET", "/recommend/ann?n=5"),
        ].join("\n")}</pre>
        <p>All calls, to be tried: <a href="/docs">API</a>. All else: the <${Manual} page="index">manual<//>.</p></article>
    </div>
    <h2>The three calls in Python</h2>
    <pre>${program}</pre>
    <p><${Commands} python=${program} /></p>
  </section>`;
}
