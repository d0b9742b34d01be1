// Every kind of call, as a program in TypeScript makes it: a test compiles it, nothing runs it.

import { Foldin, FoldinError, type Prediction, type RatingLine, type Recommended } from "foldin-client";

async function* several(): AsyncGenerator<{ user_id: string; item_id: number; rating: number }> {
  yield { user_id: "ann", item_id: 7, rating: 4.5 };
}

export async function use(): Promise<void> {
  const foldin = new Foldin("http://127.0.0.1:8080", { key: "fk_1", timeoutMs: 500, retryMs: 0, attempts: 1, fetch });
  const stored: number = (await foldin.rate({ user_id: "ann", item_id: "dune", rating: 5, context: { device: "tv" } })).accepted;
  await foldin.rate([{ user_id: 1, item_id: 2, rating: 3, timestamp: null }]);
  await foldin.rate(several());
  await foldin.putItems(foldin.exportItems());
  const one = await foldin.predict("ann", 12, { distribution: true });
  const shares: number[] = one.distribution ?? [];
  const many = await foldin.predictMany({ user_id: "ann", item_ids: ["dune", 7] });
  if ("predictions" in many) many.predictions.forEach((each: Prediction) => each.std.toFixed(stored + shares.length));
  const list: Recommended[] = (await foldin.recommend("ann", { n: 3, explore: "thompson" })).items;
  await foldin.recommendByRules("ann", { filter: { must: [] }, pinned: [{ item_id: list[0]!.item_id, position: 1 }] });
  for await (const rating of foldin.exportRatings()) {
    const line: RatingLine = rating;
    await foldin.unrate(line.user_id, line.item_id);
  }
  const text: string = await foldin.metrics();
  await foldin.putUsers([{ user_id: text, attributes: { age: 30 } }]);
  await foldin.activate(2, { hold: false });
  const training = await foldin.getTraining("receipt");
  if (training.state === "failed") throw new Error(training.cause ?? "");
  try {
    await foldin.forgetUser("ann");
  } catch (error) {
    if (!(error instanceof FoldinError)) throw error;
    if (error.code === "unknown_user" || error.isLost) console.log(error.row?.toFixed(), error.more["ratings"]);
  }
}
