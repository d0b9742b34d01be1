// Made by `make clients` of the service's description: change that, not this.

/** One row, or any number of them: they go out in calls of 10,000 rows and at most 8 MB, one after the other. */
export type Rows<Row> = Row | Iterable<Row> | AsyncIterable<Row>;

export interface Options {
  /** Sent as `Authorization: Bearer`. */
  key?: string;
  /** A call fails when nothing comes for so long; with Infinity it waits. A RangeError from 2 ** 31 on. */
  timeoutMs?: number;
  /** For so long, and so often in all, is a call sent again where that helps and does no harm. */
  retryMs?: number;
  attempts?: number;
  /** In place of the global one. */
  fetch?: typeof fetch;
}

export declare class Foldin {
  constructor(url: string, options?: Options);
  readonly url: string;
}

/** A call failed. Without an answer `status` is 0 and `code` empty; `code` is empty, too, where what answered is no Foldin. */
export declare class FoldinError extends Error {
  readonly status: number;
  readonly code: Code;
  readonly detail: string;
  readonly requestId: string;
  readonly field: string | null;
  /** From 0, over all rows that were given. */
  readonly row: number | null;
  readonly retryAfterMs: number | null;
  /** Whether no whole answer came, so that it is not known whether the service has acted. */
  readonly isLost: boolean;
  /** How often the call was sent. */
  readonly attempts: number;
  /** Rows that were stored by the calls before this one. What the caller's own rows throw has it, too. */
  readonly accepted: number;
  /** What else the problem document has. */
  readonly more: Record<string, unknown>;
}

export type Code =
  | "attribute_in_use"
  | "body_too_large"
  | "cross_site"
  | "data_damaged"
  | "disk_full"
  | "experiment_exists"
  | "forbidden"
  | "internal_error"
  | "invalid_body"
  | "invalid_context"
  | "invalid_parameter"
  | "invalid_rule"
  | "invalid_type"
  | "key_exists"
  | "last_operate_key"
  | "malformed_json"
  | "malformed_request"
  | "method_not_allowed"
  | "missing_parameter"
  | "no_generation"
  | "not_found"
  | "overloaded"
  | "quota_exceeded"
  | "ratings_would_be_lost"
  | "request_timeout"
  | "scale_decided"
  | "store_full"
  | "store_unavailable"
  | "stream_full"
  | "too_many_experiments"
  | "too_many_items"
  | "too_many_ratings"
  | "too_many_rows"
  | "too_many_scenarios"
  | "train_in_progress"
  | "training_failed"
  | "training_refused"
  | "training_timeout"
  | "unauthorized"
  | "unknown_context_field"
  | "unknown_event"
  | "unknown_event_type"
  | "unknown_experiment"
  | "unknown_generation"
  | "unknown_item"
  | "unknown_key"
  | "unknown_parameter"
  | "unknown_rating"
  | "unknown_receipt"
  | "unknown_scenario"
  | "unknown_user"
  | "unsupported_media_type"
  | "worker_full"
  | (string & {});

export interface Foldin {
  /** The expected rating of one pair. `user` and `item` are synonyms of the parameters. `GET /predict`; role `read`. */
  predict(user_id: string | number, item_id: string | number, options?: { timestamp?: number | string; distribution?: boolean; context?: Record<string, any>; }): Promise<OnePrediction>;
  /** The expected ratings of one pair, or of up to 10,000. `POST /predict`; role `read`. */
  predictMany(body: { user_id: string | number; item_id: string | number; timestamp?: number | string | null | Array<number | string | null>; context?: Record<string, any> | Array<unknown>; } | { user_id: string | number; item_ids: Array<string | number>; timestamp?: number | string | null | Array<number | string | null>; context?: Record<string, any> | Array<unknown>; } | { pairs: Array<[string | number, string | number]>; timestamp?: number | string | null | Array<number | string | null>; context?: Record<string, any> | Array<unknown>; }): Promise<OnePrediction | Predictions>;
  /** Learn ratings: one, an array, or one a line. One bad row refuses all; reads after a 2xx know them. `POST /ratings`; role `rate`. */
  rate(rows: Rows<RatingIn>): Promise<Accepted>;
  /** Take one rating back. `DELETE /ratings/{user_id}/{item_id}`; role `rate`. */
  unrate(user_id: string | number, item_id: string | number): Promise<Deleted>;
  /** All ratings, one a line, as POST /ratings takes them. `GET /export/ratings`; role `read`. */
  exportRatings(): AsyncGenerator<RatingLine, void, undefined>;
  /** Learn events of any types: one, an array, or one a line. One bad row refuses all. `POST /events`; role `rate`. */
  postEvents(rows: Rows<EventIn>): Promise<Accepted>;
  /** The events of a user that are no ratings, the latest first. `GET /users/{user_id}/events`; role `read`. */
  getUserEvents(user_id: string | number, options?: { n?: number; offset?: number; }): Promise<EventsPage>;
  /** Take one event back. `DELETE /events/{user_id}/{item_id}/{type}`; role `rate`. */
  deleteEvent(user_id: string | number, item_id: string | number, type: string): Promise<Deleted>;
  /** The types of events. `GET /event-types`; role `read`. */
  getEventTypes(): Promise<TypesOut>;
  /** Have these types take events, as they are put here. `PUT /event-types`; role `operate`. */
  putEventTypes(options: { types: Array<TypeIn>; }): Promise<TypesOut>;
  /** Retire a type: it takes no events any more, and those that there are stay, and count on. `DELETE /event-types/{type}`; role `operate`. */
  retireEventType(type: string): Promise<TypesOut>;
  /** The best items for a user. `GET /recommend/{user_id}`; role `read`. */
  recommend(user_id: string | number, options?: { n?: number; offset?: number; exclude_seen?: boolean | string; impressions?: boolean; explore?: "none" | "thompson"; recency?: number; seed?: number; order?: "score" | "rating"; category?: string; exclude_items?: string; scenario?: string; include?: string | Array<string>; context?: Record<string, any>; }): Promise<Recommendations>;
  /** The best items for a user, under rules. `POST /recommend/{user_id}`; role `read`. */
  recommendByRules(user_id: string | number, options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; order?: "score" | "rating" | null; explore?: "none" | "thompson" | null; recency?: number | null; impressions?: boolean | null; offset?: number; seed?: number | null; scenario?: string | null; context?: Record<string, number | string | boolean | null> | null; }): Promise<Recommendations>;
  /** The best items for someone who is not stored. `POST /recommend`; role `read`. */
  recommendAnonymous(options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; order?: "score" | "rating" | null; explore?: "none" | "thompson" | null; recency?: number | null; impressions?: boolean | null; offset?: number; seed?: number | null; scenario?: string | null; context?: Record<string, number | string | boolean | null> | null; ratings?: Array<AnonymousRating>; events?: Array<AnonymousEvent>; }): Promise<Recommendations>;
  /** The names of all scenarios. `GET /scenarios`; role `read`. */
  getScenarios(): Promise<ScenarioNames>;
  /** The rules of a scenario. `GET /scenarios/{name}`; role `read`. */
  getScenario(name: string): Promise<Scenario>;
  /** Store rules under a name, in place of those before. `PUT /scenarios/{name}`; role `operate`. */
  putScenario(name: string, options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; order?: "score" | "rating" | null; explore?: "none" | "thompson" | null; recency?: number | null; impressions?: boolean | null; }): Promise<Scenario>;
  /** Delete a scenario. `DELETE /scenarios/{name}`; role `operate`. */
  deleteScenario(name: string): Promise<ScenarioDeleted>;
  /** The experiments that run. `GET /experiments`; role `read`. */
  getExperiments(): Promise<ExperimentsOut>;
  /** What came of an experiment so far, by arm. `GET /experiments/{name}`; role `read`. */
  getExperiment(name: string): Promise<ExperimentFigures>;
  /** Begin an experiment. Sent again it changes nothing; another one of the same name is refused. `PUT /experiments/{name}`; role `operate`. */
  putExperiment(name: string, options: { arms: Array<ArmIn>; scenario?: string | null; }): Promise<Begun>;
  /** End an experiment, and forget its figures. `DELETE /experiments/{name}`; role `operate`. */
  deleteExperiment(name: string, options?: { keep?: string; }): Promise<Ended>;
  /** The items most like one. `GET /similar/{item_id}`; role `read`. */
  similar(item_id: string | number, options?: { by?: "behaviour" | "content" | "both"; n?: number; offset?: number; user_id?: string; exclude_seen?: boolean | string; category?: string; exclude_items?: string; scenario?: string; include?: string | Array<string>; }): Promise<Similar>;
  /** The items most like one, under rules. `POST /similar/{item_id}`; role `read`. */
  similarByRules(item_id: string | number, options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; offset?: number; user_id?: string | number | null; scenario?: string | null; by?: "behaviour" | "content" | "both" | null; }): Promise<Similar>;
  /** The most loved items. `GET /popular`; role `read`. */
  popular(options?: { by?: "rating" | "events"; n?: number; offset?: number; user_id?: string; exclude_seen?: boolean | string; category?: string; exclude_items?: string; scenario?: string; include?: string | Array<string>; }): Promise<Popular>;
  /** The most loved items, under rules. `POST /popular`; role `read`. */
  popularByRules(options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; offset?: number; user_id?: string | number | null; scenario?: string | null; by?: "rating" | "events" | null; }): Promise<Popular>;
  /** The items that are rated most of late. `GET /trending`; role `read`. */
  trending(options?: { n?: number; offset?: number; user_id?: string; exclude_seen?: boolean | string; category?: string; exclude_items?: string; scenario?: string; include?: string | Array<string>; }): Promise<Trending>;
  /** The items that are rated most of late, under rules. `POST /trending`; role `read`. */
  trendingByRules(options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; offset?: number; user_id?: string | number | null; scenario?: string | null; }): Promise<Trending>;
  /** The latest items. `GET /latest`; role `read`. */
  latest(options?: { n?: number; offset?: number; user_id?: string; exclude_seen?: boolean | string; category?: string; exclude_items?: string; scenario?: string; include?: string | Array<string>; }): Promise<Latest>;
  /** The latest items, under rules. `POST /latest`; role `read`. */
  latestByRules(options?: { filter?: Record<string, any> | null; exclude_items?: Array<string | number> | null; candidate_items?: Array<string | number> | null; boosts?: Array<Boost> | null; diversity?: Diversity | null; per_category?: number | null; pinned?: Array<Pin> | null; n?: number | null; exclude_seen?: boolean | Array<string> | null; include?: string | Array<string> | null; offset?: number; user_id?: string | number | null; scenario?: string | null; }): Promise<Latest>;
  /** Which of the user's own ratings moved a score, and by how much. `GET /explain/{user_id}/{item_id}`; role `read`. */
  explain(user_id: string | number, item_id: string | number, options?: { n?: number; context?: Record<string, any>; }): Promise<Explained>;
  /** Users whose ids begin with a text. A call looks through a part of the store, so a page may be short. `GET /users`; role `read`. */
  findUsers(options?: { prefix?: string; n?: number; cursor?: string; }): Promise<UsersPage>;
  /** Say what is known of users besides ratings: one, an array, or one a line. One bad row refuses all. `POST /users`; role `operate`. */
  putUsers(rows: Rows<UserRowIn>): Promise<StoredUsers>;
  /** What is known of a user. `GET /users/{user_id}`; role `read`. */
  getUser(user_id: string | number): Promise<UserOut>;
  /** Forget a user everywhere. `DELETE /users/{user_id}`; role `operate`. */
  forgetUser(user_id: string | number): Promise<Receipt>;
  /** The ratings of a user, the latest first. `GET /users/{user_id}/ratings`; role `read`. */
  getUserRatings(user_id: string | number, options?: { n?: number; offset?: number; }): Promise<RatingsPage>;
  /** Whether the archive has forgotten a user, or has the ratings of an item taken back, too; `detail` says what a pending erasure waits for. `GET /receipts/{receipt}`; role `read`. */
  getReceipt(receipt: string): Promise<Receipt>;
  /** What is known of an item. `GET /items/{item_id}`; role `read`. */
  getItem(item_id: string | number, options?: { distribution?: boolean; }): Promise<ItemOut>;
  /** Say what is known of an item; what was said before is replaced. `PUT /items/{item_id}`; role `operate`. */
  putItem(item_id: string | number, options?: { title?: string; categories?: Array<string>; attributes?: Record<string, any>; hidden?: boolean; available_from?: number | string | null; available_until?: number | string | null; image?: string | null; }): Promise<ItemShown>;
  /** Change some of what is known of an item. `PATCH /items/{item_id}`; role `operate`. */
  patchItem(item_id: string | number, options?: { title?: string; categories?: Array<string>; attributes?: Record<string, any>; hidden?: boolean; available_from?: number | string | null; available_until?: number | string | null; image?: string | null; }): Promise<ItemShown>;
  /** Delete an item: it is in no list any more. `DELETE /items/{item_id}`; role `operate`. */
  deleteItem(item_id: string | number, options?: { ratings?: "keep" | "delete"; }): Promise<DeletedItem>;
  /** The users whose taste is nearest to a user's, among the most active ones. `GET /neighbours/{user_id}`; role `read`. */
  neighbours(user_id: string | number, options?: { n?: number; offset?: number; least?: number; }): Promise<NeighboursOut>;
  /** What is known of a user besides ratings. `GET /users/{user_id}/attributes`; role `read`. */
  getAttributes(user_id: string | number): Promise<AttributesOut>;
  /** Say what is known of a user besides ratings; what was said before is replaced. `PUT /users/{user_id}/attributes`; role `operate`. */
  putAttributes(user_id: string | number, body: Record<string, any>): Promise<AttributesOut>;
  /** Change some attributes of a user. `PATCH /users/{user_id}/attributes`; role `operate`. */
  patchAttributes(user_id: string | number, body: Record<string, any>): Promise<AttributesOut>;
  /** Delete the attributes of a user; the ratings stay. `DELETE /users/{user_id}/attributes`; role `operate`. */
  deleteAttributes(user_id: string | number): Promise<DeletedAttributes>;
  /** List the users with attributes. `GET /attributes`; role `read`. */
  listAttributes(options?: { n?: number; cursor?: string; }): Promise<AttributesPage>;
  /** Return the attributes of all users, one user a line, as POST /users takes them. `GET /export/users`; role `read`. */
  exportUsers(): AsyncGenerator<UserRow, void, undefined>;
  /** List the items of the catalogue, or all that are known; hidden ones too. `GET /items`; role `read`. */
  listItems(options?: { n?: number; cursor?: string; prefix?: string; by?: "id" | "title"; of?: "catalogue" | "all"; ids?: Array<string>; }): Promise<ItemPage>;
  /** Say what is known of items: one, an array, or one a line. One bad row refuses all. `POST /items`; role `operate`. */
  putItems(rows: Rows<ItemRowIn>): Promise<Stored>;
  /** Return all items of the catalogue, one a line, as POST /items takes them. `GET /export/items`; role `read`. */
  exportItems(): AsyncGenerator<ItemLine, void, undefined>;
  /** Return the type of each attribute, told or inferred at its first use, and the fields of contexts. `GET /schema`; role `read`. */
  getSchema(): Promise<SchemaBody>;
  /** Tell types of attributes, and fields of contexts, before their first use; those of others stay. `PUT /schema`; role `operate`. */
  putSchema(options?: { items?: Record<string, "boolean" | "list" | "number" | "text" | "time">; users?: Record<string, "boolean" | "list" | "number" | "text" | "time">; context?: Record<string, ContextFieldBody>; }): Promise<SchemaBody>;
  /** Take an attribute from all items, and free its name, which may then have another type. `DELETE /schema/items/{attribute}`; role `operate`. */
  deleteItemAttribute(attribute: string): Promise<SchemaBody>;
  /** Take an attribute from all users, and free its name, which may then have another type. `DELETE /schema/users/{attribute}`; role `operate`. */
  deleteUserAttribute(attribute: string): Promise<SchemaBody>;
  /** Delete a field of contexts, and free its name: what ratings have of it is neither shown nor learned. `DELETE /schema/context/{field}`; role `operate`. */
  deleteContextField(field: string): Promise<SchemaBody>;
  /** Begin a new history with these ratings; without a body, fit again on all that is known. `POST /train`; role `operate`. */
  train(options?: { nb_users?: number; nb_items?: number; user_history?: Array<string | number>; item_history?: Array<string | number>; rating_history?: Array<number>; variables_history?: Array<Array<number>> | null; replace?: boolean; next_user?: string | number | null; next_item?: string | number | null; wait?: number; }): Promise<TrainedOut | TrainingOut>;
  /** How far a training has come. `GET /train/{receipt}`; role `read`. */
  getTraining(receipt: string): Promise<TrainingOut>;
  /** The generations that are kept. `GET /generations`; role `read`. */
  getGenerations(): Promise<GenerationsOut>;
  /** Make a generation that is kept the live one. `POST /generations/{generation}/activate`; role `operate`. */
  activate(generation: number, options?: { hold?: boolean; }): Promise<Activated>;
  /** Whether the process runs. `GET /livez`; role `public`. */
  livez(): Promise<Alive>;
  /** Whether to send requests here. `GET /readyz`; role `public`. */
  readyz(): Promise<Ready>;
  /** What the caller may do. `GET /access`; role `public`. */
  access(): Promise<AccessOut>;
  /** The settings that are in force. `GET /settings`; role `operate`. */
  settings(): Promise<SettingsOut>;
  /** The keys of the API, which themselves are not stored. `GET /keys`; role `operate`. */
  getKeys(): Promise<KeysOut>;
  /** Make a key. Workers let it in within two seconds; from the first key on all calls need one. One of the role `operate` comes first, so that there is one that may make others. `POST /keys`; role `operate`. */
  addKey(options: { name: string; role: "metrics" | "operate" | "rate" | "read"; }): Promise<KeyMade>;
  /** Let the keys of a name in no longer, within two seconds. The last one of the role `operate` stays while there are others. Keys go on being asked for after the very last: `foldin keys add` makes another. `DELETE /keys/{name}`; role `operate`. */
  removeKey(name: string): Promise<KeyRemoved>;
  /** Decide on the scale of the ratings, before the first one is stored. May be repeated. `PUT /scale`; role `operate`. */
  decideScale(options: { low: number; high: number; step?: number | null; }): Promise<ScaleOut>;
  /** What is live, in numbers. `GET /status`; role `metrics`. */
  status(): Promise<Status>;
  /** How all replicas and the trainer have been, by interval, and who is at work now. `GET /history`; role `read`. */
  history(options?: { seconds?: number; }): Promise<HistoryOut>;
  /** For Prometheus. `GET /metrics`; role `metrics`. */
  metrics(): Promise<string>;
  /** This description. `GET /openapi.json`; role `public`. */
  describe(): Promise<Record<string, any>>;
  /** A file of the pages. `GET /static/{name}`; role `public`. */
  pageFile(name: string): Promise<string>;
  /** A file of a part of the pages. `GET /static/{folder}/{name}`; role `public`. */
  pageFolderFile(folder: string, name: string): Promise<string>;
  /** This description, to be read and tried. `GET /docs`; role `public`. */
  docsPage(): Promise<string>;
  /** The dashboard. `GET /`; role `public`. */
  page(): Promise<string>;
  /** The manual; where it is not built, how it is. `GET /manual`; role `public`. */
  manual(): Promise<string>;
  /** A page of the manual; where it is not built, how it is. `GET /manual/{page}`; role `public`. */
  manualPage(page: string): Promise<string>;
}

/** How many ratings or events were stored, and the generation that was live then (null before the first). */
export interface Accepted {
  accepted: number;
  generation: number | null;
}

/** The role of the key that asks, `none` without one that is known; `keys`: whether calls need one. */
export interface AccessOut {
  role: "metrics" | "none" | "operate" | "rate" | "read" | (string & {});
  keys: boolean;
}

/** What is live now. `served`: whether every worker answers from it already. */
export interface Activated {
  generation: number;
  epoch: number;
  held: boolean;
  served: boolean;
}

/** The process runs and its event loop turns. */
export interface Alive {
  alive: boolean;
}

/** An event, other than a rating, of someone who is not stored. */
export interface AnonymousEvent {
  item_id: string | number;
  type: string;
  timestamp?: number | string | null;
}

/** A rating of someone who is not stored. */
export interface AnonymousRating {
  item_id: string | number;
  rating: number;
  timestamp?: number | string | null;
  context?: Record<string, number | string | boolean | null> | null;
}

/** A share of the users, and the scenario that they get. */
export interface Arm {
  name: string;
  share: number;
  scenario: string;
}

/** What came of an arm. `users`: how many it has answered, to about a percent. `lists` that were answered, items `shown` in them, and of these the `positives`. The difference is to the first arm. */
export interface ArmFigures {
  name: string;
  share: number;
  scenario: string;
  users: number;
  lists: number;
  shown: number;
  positives: number;
  positive_rate?: Estimate | null;
  positive_rate_difference?: Difference | null;
}

/** A `share` of the users, from 0 to 1, and the scenario that they get. */
export interface ArmIn {
  name: string;
  share: number;
  scenario: string;
}

/** The attributes of a user. Times are ISO 8601, in UTC. */
export interface AttributesOut {
  user_id: string;
  attributes: Record<string, any>;
}

/** Users with attributes, in an order that stays. `next` is the cursor of the page behind, null at the end. */
export interface AttributesPage {
  users: Array<UserRow>;
  next: string | null;
}

/** What an average user would give an item: with 90 % a rating from `low` to `high`, around `rating`. Each rating of the item narrows it. */
export interface Average {
  rating: number;
  low: number;
  high: number;
}

/** What a backup has: `events` ratings and other events. `at`: when it ended, in seconds since 1970. */
export interface Backup {
  at: number;
  events: number;
}

/** `followed`: whether every worker acts by it already. */
export interface Begun {
  name: string;
  arms: Array<Arm>;
  began: number;
  scenario?: string | null;
  followed?: boolean;
}

/** Multiplies the scores of the items that pass a filter. */
export interface Boost {
  filter: Record<string, any>;
  multiply: number;
}

/** A field of the contexts of ratings. `categories`: those that it has, where it is one of categories. */
export interface ContextFieldBody {
  kind: "category" | "number" | (string & {});
  categories?: Array<string>;
}

/** How many ratings were taken back. */
export interface Deleted {
  deleted: number;
  generation: number | null;
}

/** Of how many users attributes were deleted. */
export interface DeletedAttributes {
  deleted: number;
}

/** How many items were deleted. `receipt`: of the ratings, which are taken back one by one; `archive` is `pending` until then. */
export interface DeletedItem {
  deleted: number;
  receipt?: string | null;
  archive?: string | null;
}

/** By how much a figure is above that of the first arm, with a 95 % interval. */
export interface Difference {
  value: number;
  low: number;
  high: number;
  excludes_zero: boolean;
}

/** Maximal marginal relevance: `lambda` 1 is the order of the scores, 0 looks at differences alone. */
export interface Diversity {
  lambda: number;
}

/** `scenario`: that of calls that ask for none from now on. `followed`: whether every worker knows. */
export interface Ended {
  ended: string;
  followed: boolean;
  scenario?: string | null;
}

/** A figure and its 95 % interval. */
export interface Estimate {
  value: number;
  low: number;
  high: number;
}

/** One event as it is sent. `value`: any number, 1 without it; of type `rating` the rating; of a type that means `shown` the generation that has shown it, 0 for none, and the live one without it. `timestamp`: seconds since 1970; without it, the moment of arrival. `recommendation_id`: of the answer that showed the item. `context`: of a rating. */
export interface EventIn {
  user_id: string | number;
  item_id: string | number;
  type: string;
  value?: number | null;
  timestamp?: number | string | null;
  recommendation_id?: string | null;
  context?: Record<string, number | string | boolean | null> | null;
}

/** One event of a user. `timestamp` is null where it is not known. */
export interface EventOut {
  item_id: string;
  type: string;
  value: number;
  timestamp: number | null;
}

/** One type. `meaning`: the user wanted the item (`positive`), or did not (`negative`), or was only `shown` it; `weight`: how much an event counts in a ranking head, where a rating counts 1, None where a fit is to choose it; `consumed`: whether the item counts as seen. A `retired` type takes no events any more. */
export interface EventType {
  name: string;
  code: number;
  meaning: "negative" | "positive" | "shown" | (string & {});
  weight?: number | null;
  consumed?: boolean;
  retired?: boolean;
}

/** Some of a user's events that are no ratings, the latest first. `total`: how many there are. */
export interface EventsPage {
  user_id: string;
  total: number;
  n: number;
  offset: number;
  events: Array<EventOut>;
}

/** `scenario`: the calls of GET /recommend that take part ask for this one; without it, those that ask for none. */
export interface ExperimentBody {
  arms: Array<ArmIn>;
  scenario?: string | null;
}

/** An experiment and what came of it so far. */
export interface ExperimentFigures {
  name: string;
  arms: Array<ArmFigures>;
  began: number;
  scenario?: string | null;
}

/** An experiment. `began`: seconds since 1970. */
export interface ExperimentOut {
  name: string;
  arms: Array<Arm>;
  began: number;
  scenario?: string | null;
}

/** Those that run. `default_scenario`: of calls that ask for none, as an experiment has left it. */
export interface ExperimentsOut {
  experiments: Array<ExperimentOut>;
  default_scenario?: string | null;
}

/** `base` plus all contributions, and the `rest` of those that `n` left out, is `rating`, which is what GET /predict answers. `score`: what GET /recommend ranks the item by, of the rating and `relevance`, where the generation has a ranking head. */
export interface Explained {
  user_id: string;
  item_id: string;
  rating: number;
  std: number;
  basis: string;
  base: number;
  parts: Array<Part>;
  generation: number;
  degraded?: boolean;
  rest?: number | null;
  score?: number | null;
  relevance?: Relevance | null;
}

/** What came of a generation's lists: how many there were, items shown in them, of these the positives (a positive event within seven days), their share with a 95 % interval, and the share of its items that were shown at all, to about a percent. */
export interface Feedback {
  lists: number;
  shown: number;
  positives: number;
  positive_rate: Estimate | null;
  coverage: number;
}

/** One generation. `created`: seconds since 1970. */
export interface GenerationOut {
  generation: number;
  epoch: number;
  state: string;
  live: boolean;
  created: number;
  rank: number;
  link: string;
  engine: string;
  n_users: number;
  n_items: number;
  n_ratings: number;
  metrics: Record<string, number>;
  feedback?: Feedback | null;
}

/** What is kept, the newest first. `live` is 0 before the first; `held`: automatic refits wait. */
export interface GenerationsOut {
  live: number;
  epoch: number;
  held: boolean;
  generations: Array<GenerationOut>;
}

/** Intervals of `step_s` seconds, the oldest first; null where no process has told of itself. `at`: their ends, seconds since 1970. `rmse`, `baseline_rmse`: of ratings that arrived, as predicted before they were learned, and as an unknown user would be told. `failures_per_s`, `turned_away_per_s`: answers of 5xx, and of 401, 403 and 429; `mistakes_per_s`: unexpected exceptions. `servers`: of the store, as a trainer has found them last. */
export interface HistoryOut {
  step_s: number;
  at: Array<number>;
  rmse: Array<number | null>;
  baseline_rmse: Array<number | null>;
  requests_per_s: Array<number | null>;
  failures_per_s: Array<number | null>;
  turned_away_per_s: Array<number | null>;
  mistakes_per_s: Array<number | null>;
  p50_s: Array<number | null>;
  p99_s: Array<number | null>;
  predictions_per_s: Array<number | null>;
  ratings_per_s: Array<number | null>;
  generation: Array<number | null>;
  lag: Array<number | null>;
  workers_bytes: Array<number | null>;
  store_bytes: Array<number | null>;
  trainer_bytes: Array<number | null>;
  replicas: Array<Replica>;
  servers?: Array<StoreServer>;
}

/** What is known of an item besides its ratings. It is not hidden where that is left out. */
export interface ItemIn {
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: number | string | null;
  available_until?: number | string | null;
  image?: string | null;
}

/** An item of an export. It always says whether it is hidden: a row of POST /items that does not leaves that as it is. */
export interface ItemLine {
  item_id: string;
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  available_from?: string | null;
  available_until?: string | null;
  image?: string | null;
  hidden: boolean;
}

/** Which part of a list, under which rules. `user_id`: whose items that were seen are left out; `scenario`: rules that are stored. */
export interface ItemListBody {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  offset?: number;
  user_id?: string | number | null;
  scenario?: string | null;
}

/** An item of a page. Where all known ones are asked for, and a generation is live, `ratings` and `mean` as it knows them; `positives`: its positive events, where the generation has learned any of any item. */
export interface ItemListed {
  item_id: string;
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: string | null;
  available_until?: string | null;
  image?: string | null;
  ratings?: number | null;
  mean?: number | null;
  positives?: number | null;
}

/** What the catalogue has of an item, and what the live generation knows of it. `expected`: from an unknown user; `distribution`: the probability of each step of the scale, lowest first. `average`: of an item that has ratings. `positives`: its positive events, where the generation has learned any of any item. */
export interface ItemOut {
  item_id: string;
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: string | null;
  available_until?: string | null;
  image?: string | null;
  ratings: number;
  mean: number | null;
  expected: Prediction;
  generation: number;
  average?: Average | null;
  distribution?: Array<number> | null;
  positives?: number | null;
}

/** Items in the order of their ids, or of their titles. `next` is the cursor of the page behind, null at the end; `total` counts all items of the catalogue, or all that were ever known, deleted ones too; where some were named, those of them that are there. */
export interface ItemPage {
  total: number;
  items: Array<ItemListed>;
  next: string | null;
}

/** Changes of an item: what is left out stays, an attribute that is null goes. */
export interface ItemPatch {
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: number | string | null;
  available_until?: number | string | null;
  image?: string | null;
}

/** The same with the item's id, in a call with several. Where `hidden` is left out an item that is hidden stays so. `undelete`: whether one that was deleted comes back. */
export interface ItemRowIn {
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: number | string | null;
  available_until?: number | string | null;
  image?: string | null;
  item_id: string | number;
  undelete?: boolean;
}

/** An item of the catalogue. Times are ISO 8601, in UTC. */
export interface ItemShown {
  item_id: string;
  title?: string;
  categories?: Array<string>;
  attributes?: Record<string, any>;
  hidden?: boolean;
  available_from?: string | null;
  available_until?: string | null;
  image?: string | null;
}

/** A key that is to be made. */
export interface KeyIn {
  name: string;
  role: "metrics" | "operate" | "rate" | "read" | (string & {});
}

/** A key that was made. `key` is shown this once. */
export interface KeyMade {
  name: string;
  role: "metrics" | "operate" | "rate" | "read" | (string & {});
  key: string;
}

/** A key, without itself. `created`: seconds since 1970. */
export interface KeyOut {
  name: string;
  role: "metrics" | "operate" | "rate" | "read" | (string & {});
  created: number;
}

/** How many keys of the name there were. */
export interface KeyRemoved {
  removed: number;
}

/** All keys, the oldest first. `unreadable`: so many are of a newer version. */
export interface KeysOut {
  keys: Array<KeyOut>;
  unreadable: number;
}

/** The latest items, the last first. `reason`: why there are none. */
export interface Latest {
  generation: number;
  items: Array<New>;
  recommendation_id: string;
  degraded?: boolean;
  reason?: string | null;
}

/** What is wanted, and under which rules. `scenario`: rules that are stored, for those that the call does not have. `context`: that of the ratings that the list is made for. */
export interface ListBody {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  order?: "score" | "rating" | (string & {}) | null;
  explore?: "none" | "thompson" | (string & {}) | null;
  recency?: number | null;
  impressions?: boolean | null;
  offset?: number;
  seed?: number | null;
  scenario?: string | null;
  context?: Record<string, number | string | boolean | null> | null;
}

/** An item and the lower 95 % bound of what an average user would give it; by events, the weight of its positive ones, and how many these are. */
export interface Loved {
  item_id: string;
  score: number;
  ratings: number;
  mean: number | null;
  positives?: number | null;
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
}

/** A user, how like the taste is (1: the same, 0: none in common), and how many ratings say so; where the generation has learned none, how many `events`. */
export interface NearUserOut {
  user_id: string;
  similarity: number;
  ratings: number;
  events?: number | null;
}

/** An item and how near it is: 1 is the same taste or content, 0 none in common. */
export interface Neighbour {
  item_id: string;
  score: number;
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
}

/** The users nearest to one, the nearest first. `among`: of how many they are the nearest. `reason`: why there are none. */
export interface NeighboursOut {
  user_id: string;
  generation: number;
  neighbours: Array<NearUserOut>;
  among: number;
  reason?: string | null;
  degraded?: boolean;
}

/** An item and since when it may be shown, in seconds since 1970; null where that was not said. */
export interface New {
  item_id: string;
  available_from: number | null;
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
}

/** The answer of GET /predict. `distribution`: probability of each step of the scale, lowest first. `degraded`: the store is away, and the answer may lack ratings that were acknowledged. */
export interface OnePrediction {
  rating: number;
  std: number;
  basis: string;
  generation: number;
  distribution?: Array<number> | null;
  degraded?: boolean;
}

/** By how much one rating of the user moved the score. */
export interface Part {
  item_id: string;
  rating: number;
  contribution: number;
}

/** An item at a position of the list, from 1 on. */
export interface Pin {
  item_id: string | number;
  position: number;
}

/** The most loved items, best first, and what they are listed `by`: events, or rating where nothing is said. `reason`: why there are none. */
export interface Popular {
  generation: number;
  items: Array<Loved>;
  recommendation_id: string;
  by?: string;
  degraded?: boolean;
  reason?: string | null;
}

/** The same of a list of the most loved items. */
export interface PopularBody {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  offset?: number;
  user_id?: string | number | null;
  scenario?: string | null;
  by?: "rating" | "events" | (string & {}) | null;
}

/** One score: the expected rating, its standard deviation and what it rests on. */
export interface Prediction {
  rating: number;
  std: number;
  basis: string;
}

/** Predictions in the order in which they were asked. */
export interface Predictions {
  generation: number;
  predictions: Array<Prediction>;
  degraded?: boolean;
}

/** What went wrong, by RFC 9457. `code` is stable; `field` and `row` (from 0) tell where the input is wrong. */
export interface ProblemOut {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
  request_id: string;
  field?: string | null;
  row?: number | null;
}

/** One rating as it is sent. `timestamp`: seconds since 1970, or ISO 8601; without it, the moment of arrival. `context`: under which circumstances it was given. */
export interface RatingIn {
  user_id: string | number;
  item_id: string | number;
  rating: number;
  timestamp?: number | string | null;
  context?: Record<string, number | string | boolean | null> | null;
}

/** A rating as POST /ratings takes it. */
export interface RatingLine {
  user_id: string;
  item_id: string;
  rating: number;
  timestamp?: number | null;
  context?: Record<string, number | string> | null;
}

/** One rating of a user. `timestamp` is null where it is not known. `context`: as it was given, numbers with the digits of a float32; not there where none was. */
export interface RatingOut {
  item_id: string;
  rating: number;
  timestamp: number | null;
  context?: Record<string, number | string>;
}

/** Some of a user's ratings, the latest first. `total`: how many there are. */
export interface RatingsPage {
  user_id: string;
  total: number;
  n: number;
  offset: number;
  ratings: Array<RatingOut>;
}

/** A generation is live here. `degraded`: the store does not answer, and reads rest on copies. */
export interface Ready {
  ready: boolean;
  generation: number;
  epoch: number;
  degraded?: boolean;
}

/** An item that the user chose or rated, and by how much that moved what ranks another. */
export interface Reason {
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
  item_id: string;
  contribution: number;
}

/** Proof of a request to be forgotten, or to take the ratings of an item back. `archive` is `erased` once the trainer has erased it there too; of the ratings of an item it becomes `taken_back`, or `failed` where their history was replaced before. */
export interface Receipt {
  receipt: string;
  archive: string;
  user_id?: string | null;
  ratings?: number | null;
  detail?: string | null;
}

/** Someone's ratings and other events, each in the order in which they were made, and what is wanted. */
export interface RecommendBody {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  order?: "score" | "rating" | (string & {}) | null;
  explore?: "none" | "thompson" | (string & {}) | null;
  recency?: number | null;
  impressions?: boolean | null;
  offset?: number;
  seed?: number | null;
  scenario?: string | null;
  context?: Record<string, number | string | boolean | null> | null;
  ratings?: Array<AnonymousRating>;
  events?: Array<AnonymousEvent>;
}

/** Items, best first. `order`: what ranked them; of a generation without a ranking head it is `rating`, also where `score` was asked for. `recommendation_id`: names this answer; to be sent back with events. `ignored`: ratings of the call whose item is not known. `reason`: why there is no item. `arms`: the user's arm by the name of the experiment that the list is of. */
export interface Recommendations {
  generation: number;
  items: Array<Recommended>;
  order: string;
  recommendation_id: string;
  user_id?: string | null;
  ignored?: number | null;
  seed?: number | null;
  degraded?: boolean;
  reason?: string | null;
  arms?: Record<string, string> | null;
}

/** An item. `score`: what it is ranked by, made of `relevance`, how likely the user is to choose it, and the expected `rating`; ranked by rating alone, it is that, and there is no relevance. A boost is in the score alone. `basis`: what the rating rests on, as in GET /predict; `relevance_basis`: what the relevance does, in the same words, by events of the user and of the item in the place of ratings. `reasons`: what of the user's history did most for its place. */
export interface Recommended {
  item_id: string;
  score: number;
  rating: number;
  basis: string;
  relevance?: number | null;
  relevance_basis?: string | null;
  reasons?: Array<Reason> | null;
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
}

/** `base` plus all contributions, and the `rest` of those that `n` left out, is `value`, the relevance of GET /recommend; `basis` its `relevance_basis`. */
export interface Relevance {
  value: number;
  base: number;
  parts: Array<RelevancePart>;
  basis: string;
  rest?: number | null;
}

/** By how much having chosen one item, by a rating of whatever value or by another event, moved the relevance. */
export interface RelevancePart {
  item_id: string;
  contribution: number;
}

/** A process that is at work. `at`: when it told of itself, seconds since 1970. `busy`: what a trainer is at; `failed`: why its last fit did not go live, at `failed_at`; `wrong`: a sentence for each alert whose condition it finds in itself. */
export interface Replica {
  process: string;
  host: string;
  generation: number;
  requests_per_s: number;
  in_flight: number;
  resident_bytes: number;
  busy: string;
  at: number;
  failed?: string;
  failed_at?: number;
  wrong?: Record<string, string>;
}

/** An item and how much it is rated of late, each rating counted half for each week since it was given: 1 is as much as the first item of the list, .5 half as much. */
export interface Rising {
  item_id: string;
  score: number;
  title?: string | null;
  image?: string | null;
  categories?: Array<string> | null;
  attributes?: Record<string, any> | null;
}

/** What a list for someone may have, and in which order. A scenario has the same fields. */
export interface RuleFields {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  order?: "score" | "rating" | (string & {}) | null;
  explore?: "none" | "thompson" | (string & {}) | null;
  recency?: number | null;
  impressions?: boolean | null;
}

/** A scale: its low end, its high end, and the step between its values where all ratings keep one. */
export interface ScaleIn {
  low: number;
  high: number;
  step?: number | null;
}

/** The scale of the ratings. `served`: whether every worker answers by it already. */
export interface ScaleOut {
  low: number;
  high: number;
  step: number | null;
  served: boolean;
}

/** A scenario and its name. */
export interface Scenario {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  order?: "score" | "rating" | (string & {}) | null;
  explore?: "none" | "thompson" | (string & {}) | null;
  recency?: number | null;
  impressions?: boolean | null;
  name: string;
}

/** How many were deleted. */
export interface ScenarioDeleted {
  deleted: number;
}

/** The names of all scenarios, in order. */
export interface ScenarioNames {
  scenarios: Array<string>;
}

/** The types of attributes of items and of users, and the fields of the contexts of ratings. */
export interface SchemaBody {
  items?: Record<string, "boolean" | "list" | "number" | "text" | "time" | (string & {})>;
  users?: Record<string, "boolean" | "list" | "number" | "text" | "time" | (string & {})>;
  context?: Record<string, ContextFieldBody>;
}

/** One setting as it is in force. `name`: its variable, or its flag; a secret says only that it is set. */
export interface SettingOut {
  name: string;
  value: string;
  default: string;
  help: string;
}

/** The settings of the worker that answers. */
export interface SettingsOut {
  settings: Array<SettingOut>;
}

/** The nearest items, best first. `reason`: why there are none. */
export interface Similar {
  item_id: string;
  generation: number;
  items: Array<Neighbour>;
  recommendation_id: string;
  degraded?: boolean;
  reason?: string | null;
}

/** The same of a list of similar items. */
export interface SimilarBody {
  filter?: Record<string, any> | null;
  exclude_items?: Array<string | number> | null;
  candidate_items?: Array<string | number> | null;
  boosts?: Array<Boost> | null;
  diversity?: Diversity | null;
  per_category?: number | null;
  pinned?: Array<Pin> | null;
  n?: number | null;
  exclude_seen?: boolean | Array<string> | null;
  include?: string | Array<string> | null;
  offset?: number;
  user_id?: string | number | null;
  scenario?: string | null;
  by?: "behaviour" | "content" | "both" | (string & {}) | null;
}

/** What the page shows. `rmse` is that of ratings predicted before they were learned, `recent_rmse` over about a minute. `scale`: low end, high end and step; one that is not `scale_decided` is what the first rating makes it. `known_events`: ratings and other events since the history began; `known_items`: items that have a row, in a fit or not yet. `backed_up`: when the last `foldin backup` ended, in seconds since 1970, with how many events; null for none. `refusing`: what has no room for ratings; null where they are taken. `lists`: what stands for the ranking head of a first fit, and until when; null where it is there. */
export interface Status {
  store_up: boolean;
  generation: number;
  epoch: number;
  engine: string | null;
  link: string | null;
  rank: number | null;
  created: number | null;
  users: number;
  items: number;
  ratings: number;
  scale: Array<number | null>;
  metrics: Record<string, number>;
  requests: number;
  predictions: number;
  accepted_ratings: number;
  ratings_per_s: number;
  recent_rmse: number | null;
  rmse: number | null;
  stream_lag: number | null;
  known_events: number | null;
  known_items: number;
  workers: Array<WorkerOut>;
  scale_decided?: boolean;
  backed_up?: Backup | null;
  refusing?: string | null;
  lists?: string | null;
}

/** A replica, as its primary sees it. `behind_bytes`: of what the primary wrote; `silent_s`: since when it has said nothing. */
export interface StoreReplica {
  address: string;
  online: boolean;
  behind_bytes: number;
  silent_s?: number;
}

/** A server that takes writes. `slots`: how many it has, 0 where the store is no cluster; `limit_bytes`: of its memory, 0 for none. Of one that is away, which does not `answer`, the rest is not known. */
export interface StoreServer {
  address: string;
  slots?: number;
  answers?: boolean;
  used_bytes?: number;
  limit_bytes?: number;
  replicas?: Array<StoreReplica>;
}

/** How many items were taken. `still_deleted`: how many of them were deleted before, and stay so. */
export interface Stored {
  accepted: number;
  still_deleted?: number;
}

/** Of how many users attributes were stored. */
export interface StoredUsers {
  accepted: number;
}

/** A history: three parallel lists, one event a position, in time order. Rows count from 0; ids may be text too. */
export interface TrainBody {
  nb_users: number;
  nb_items: number;
  user_history: Array<string | number>;
  item_history: Array<string | number>;
  rating_history: Array<number>;
  variables_history?: Array<Array<number>> | null;
  replace?: boolean;
  next_user?: string | number | null;
  next_item?: string | number | null;
}

/** What is live now. `served`: whether every worker answers from it already. */
export interface TrainedOut {
  generation: number;
  epoch: number;
  ratings: number;
  metrics: Record<string, number>;
  served: boolean;
}

/** How far a training has come. `receipt`: for GET /train/{receipt}; `since`: when it was asked for, in seconds since 1970. `waiting`: for a trainer; while it is `running`, `phase` is that of the fit that the trainer makes, `sweep` how many sweeps of it have ended. `generation`: what went live when it was `done`; `cause` and `detail`: why it `failed`. */
export interface TrainingOut {
  receipt: string;
  state: "done" | "failed" | "running" | "waiting" | (string & {});
  since: number;
  phase?: string | null;
  sweep?: number | null;
  generation?: number | null;
  cause?: string | null;
  detail?: string | null;
}

/** The items that are rated most of late, most first. `reason`: why there are none. */
export interface Trending {
  generation: number;
  items: Array<Rising>;
  recommendation_id: string;
  degraded?: boolean;
  reason?: string | null;
}

/** A type as it is put. `weight`: how much an event counts where a rating counts 1; null: a fit chooses. */
export interface TypeIn {
  name: string;
  meaning: "negative" | "positive" | "shown" | (string & {});
  weight?: number | null;
  consumed?: boolean;
}

/** Types that are to take events, beside those that do. */
export interface TypesIn {
  types: Array<TypeIn>;
}

/** All types by code, those that were retired too. */
export interface TypesOut {
  types: Array<EventType>;
}

/** What is known of a user. `expected`: of an unknown item. `events`: all that were made or taken back, ratings and others. */
export interface UserOut {
  user_id: string;
  ratings: number;
  mean: number | null;
  events: number;
  expected: Prediction;
  generation: number;
  degraded?: boolean;
}

/** A user and the attributes. */
export interface UserRow {
  user_id: string;
  attributes: Record<string, any>;
}

/** What is known of a user besides ratings. */
export interface UserRowIn {
  user_id: string | number;
  attributes?: Record<string, any>;
}

/** Some of the users, in no order. `next`: where to go on; null at the end. */
export interface UsersPage {
  users: Array<string>;
  next: string | null;
}

/** One worker process of this host. */
export interface WorkerOut {
  worker: number;
  generation: number;
  epoch: number;
  in_flight: number;
  resident_bytes: number;
  age_s: number;
}
