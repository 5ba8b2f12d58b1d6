// Draws what the scripts do: each exchange an arrow between two lanes, and beside them the state of the world.
// What it draws are the records of a trace (docs/trace.md). A report brings them along, in an element of the page;
// the lab's server sends them as they happen. Whatever they hold becomes text, never markup.
"use strict";

const LANES = ["You", "CA", "DNS", "AliDNS", "CDN", "API Gateway"];
const [YOU, CA, DNS, ALIDNS, CDN, API_GATEWAY] = LANES.keys();
const LANE_OF_PRODUCT = { Alidns: ALIDNS, Cdn: CDN, CloudAPI: API_GATEWAY };

// What an exchange is -> where it is described; what it is for, unless common/explain.py says so; the name that it has there.
const MEANING = {
  "directory": { source: "RFC 8555 section 7.1.1" },
  "newNonce": { source: "RFC 8555 section 7.2" },
  "badNonce": { source: "RFC 8555 section 6.5" },
  "newAccount": { source: "RFC 8555 section 7.3" },
  "account": { source: "RFC 8555 section 7.3.2", topic: "account, read back with a POST-as-GET" },
  "newOrder": { source: "RFC 8555 section 7.4" },
  "order": { source: "RFC 8555 section 7.1.6" },
  "authorization": { source: "RFC 8555 section 7.5", topic: "authorizations" },
  "challenge": { source: "RFC 8555 section 7.5.1", topic: "challenges" },
  "finalize": { source: "RFC 8555 section 7.4" },
  "certificate": { source: "RFC 8555 section 7.4.2" },
  "revokeCert": { source: "RFC 8555 section 7.6" },
  "keyChange": { source: "RFC 8555 section 7.3.5" },
  "renewalInfo": { source: "RFC 9773 section 4" },

  "TXT": { source: "RFC 8555 section 8.4", topic: "TXT records" },
  "CNAME": { source: "RFC 1034 section 3.6.2", words: "Does the challenge's name lead to another zone? Then the record belongs there." },
  "the CA looks": { source: "RFC 8555 section 8.4", words: "The CA's own question: is the value that only you can compute at this name? If it is, the authorization is valid." },
  "TLS handshake": { source: "RFC 8446, RFC 6066 section 3" },
  "DeleteDomainRecord": { topic: "clean-up" },
  "SetCdnDomainSSLCertificate": { topic: "the new certificate" },
  "SetDomainCertificate": { topic: "the new certificate" },

  "account.key": { source: "RFC 8555 section 6.2", topic: "account key" },
  "account.json": { source: "RFC 8555 section 7.3", words: "The account's URL, and the CA that it belongs to." },
  "pending/certificate.key": { source: "RFC 8555 section 11.1", topic: "certificate key and CSR" },
  "pending/certificate.csr": { source: "RFC 2986", topic: "certificate key and CSR" },
  "pending/order.json": { source: "RFC 8555 section 7.1.3", words: "The order's URL, so that the next script finds it." },
  "certificate.pfx": { source: "RFC 7292", topic: "PFX for Windows Server" },
};

// What a CA says of a resource: status -> how good that is.
const MOODS = {
  valid: "good", ready: "good", issued: "good", verified: "good",
  pending: "wait", processing: "wait",
  invalid: "bad", revoked: "bad", expired: "bad", deactivated: "bad",
};

const AT_ONCE = 200;  // milliseconds
const MOST_SHOWN = 25;  // exchanges of one row

const page = (id) => document.getElementById(id);
const list = (value) => (Array.isArray(value) ? value : []);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== undefined && child !== ""));
  return made;
}

function icon(name, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${name}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.append(use);
  return svg;
}


// What the records say of the world. An ACME client learns every URL from an answer, and so does this page.

const resources = new Map();  // URL -> "directory", "order", …
const acme = { account: null, order: null, authorizations: new Map() };
const recordNames = new Map();  // RecordId -> the name of the record, for DeleteDomainRecord tells the id only

function learn(record) {
  const { url, received = {}, sent = {} } = record;
  const body = isObject(received.body) ? received.body : {};
  if (body.newNonce && body.newOrder) {
    resources.set(url, "directory");
    for (const [name, address] of Object.entries(body)) if (name !== "meta") resources.set(address, name);
  }
  if (sent.protected?.kid) resources.set(sent.protected.kid, "account");
  if (received.Location && resources.get(url) === "newAccount") resources.set(received.Location, "account");
  if (received.Location && resources.get(url) === "newOrder") resources.set(received.Location, "order");
  if (body.finalize) {
    if (!resources.has(url)) resources.set(url, "order");
    resources.set(body.finalize, "finalize");
    if (body.certificate) resources.set(body.certificate, "certificate");
    for (const address of list(body.authorizations)) resources.set(address, "authorization");
  }
  if (body.challenges) {
    resources.set(url, "authorization");
    for (const challenge of list(body.challenges)) resources.set(challenge?.url, "challenge");
  }
}

function resourceOf(url) {
  const known = resources.get(url);
  if (known) return known;
  const below = [...resources].find(([address, name]) => name === "renewalInfo" && url.startsWith(`${address}/`));
  return below ? "renewalInfo" : new URL(url).pathname;
}

function remember(record, resource) {
  const { url, received = {} } = record;
  const body = isObject(received.body) ? received.body : {};
  if (!/^2/.test(record.status)) return;
  if (resource === "newAccount" || (resource === "account" && body.status)) {
    acme.account = { url: received.Location ?? url, status: body.status };
  }
  if (resource === "newOrder") acme.authorizations.clear();
  if (body.finalize) {
    const address = resource === "order" ? url : received.Location ?? acme.order?.url ?? url;
    acme.order = { url: address, status: body.status, names: names(body) };
    // An order is ready when all its names are proven, and the scripts need not ask for each (RFC 8555 section 7.1.6).
    if (body.status === "ready" || body.status === "valid") {
      for (const name of acme.authorizations.keys()) acme.authorizations.set(name, "valid");
    }
  }
  if (resource === "authorization") acme.authorizations.set(names(body), body.status);
}

// The names of an order, which a CA tells in any order it likes, or of an authorization.
function names(body) {
  if (body.identifier) return (body.wildcard ? "*." : "") + body.identifier.value;
  return list(body.identifiers).map((identifier) => identifier?.value).sort().join(", ");
}


// From a record to a row: from which lane to which, what it is called, and how it went.

function describe(record) {
  switch (record.kind) {
    case "acme": return describeAcme(record);
    case "alibaba": return describeAlibaba(record);
    case "dns": return describeQuestion(record);
    case "tls": return describeHandshake(record);
    case "wrote": return { title: `wrote ${record.file}`, meaning: record.file, mood: "note" };
    case "failure": return { title: record.what, about: record.remedy, mood: "bad", failed: true };
    default: return { title: text(record.kind ?? "a record of an unknown kind"), mood: "note" };
  }
}

function describeAcme(record) {
  learn(record);
  const resource = resourceOf(record.url);
  remember(record, resource);
  const body = isObject(record.received?.body) ? record.received.body : {};
  const problem = String(body.type ?? "").startsWith("urn:ietf:params:acme:error:") ? body.type.split(":").at(-1) : "";
  return {
    from: YOU, to: CA, title: resource, meaning: problem === "badNonce" ? problem : resource,
    about: names(body),
    status: [record.status.split(",")[0], problem || body.status].filter(Boolean).join(" · "),
    mood: /^[23]/.test(record.status) ? MOODS[body.status] ?? "good" : "bad",
  };
}

function describeAlibaba(record) {
  const [action, product] = String(record.sent?.action).split(/[ (]+/);
  const parameters = record.sent?.parameters ?? {};
  const body = record.received?.body ?? {};
  const name = [parameters.RR, parameters.DomainName].filter(Boolean).join(".");
  if (action === "AddDomainRecord") recordNames.set(body.RecordId, name);
  return {
    from: YOU, to: LANE_OF_PRODUCT[product] ?? ALIDNS, title: action, meaning: action,
    about: name || recordNames.get(parameters.RecordId),
    status: [record.status, body.Code].filter(Boolean).join(" · "),
    mood: record.status === "200" ? "good" : "bad",
  };
}

function describeQuestion(record) {
  const type = String(record.sent?.type);
  const byCa = record.by === "CA";
  const answers = list(record.received?.answer).filter((line) => line.split(" ")[3] === type);
  const none = record.status === "NOERROR" && !answers.length ? "none" : "";
  // That a name has no CNAME is the rule; that it has no TXT yet is what one waits for.
  const empty = type === "TXT" ? "wait" : "note";
  return {
    from: byCa ? CA : YOU, to: DNS, title: `${type}?`, about: String(record.sent?.name),
    meaning: byCa ? "the CA looks" : type,
    status: none || (answers.length ? `${answers.length} ${answers.length > 1 ? "values" : "value"}` : record.status),
    mood: answers.length ? "good" : none || record.status === "NXDOMAIN" ? empty : "bad",
  };
}

function describeHandshake(record) {
  const good = record.status === "verified";
  return {
    from: YOU, to: String(record.script).startsWith("08") ? API_GATEWAY : CDN, title: "TLS handshake", meaning: "TLS handshake",
    about: String(record.sent?.["server name"]), status: record.status, mood: good ? "good" : "bad", padlock: good ? "locked" : "open",
  };
}


// The story: a section for each run of a script, in it a row for each exchange. Those that are alike and happen at
// once or one after the other, such as questions to several name servers, share a row.

let section = null;  // { key, step, list, rows: what makes rows alike -> the newest such row, last: the newest row }
let count = 0;
let scripts = {};       // "04_new_order" -> what it does
let explanations = {};  // what common/explain.py has

function add(record) {
  if (!isObject(record)) return;
  let row;
  try {
    row = describe(record);
  } catch {
    // A record that is not as docs/trace.md has it is shown as it is.
    row = { title: "a record that cannot be read", mood: "note" };
  }
  count += 1;
  // What the lab saw by itself belongs to the script that is running.
  const key = record.script ? `${record.run} ${record.script}` : section?.key ?? "lab";
  if (key !== section?.key) begin(key, record);
  if (record.script) section.step = record.step;
  const like = [section.step, row.from, row.to, row.title, row.status].join("\n");
  const known = section.rows.get(like);
  if (known && (known === section.last || new Date(record.time) - new Date(known.records.at(-1).time) < AT_ONCE)) {
    known.records.push(record);
    known.abouts.add(row.about);
    label(known);
    if (known.element.open) fill(known);
  } else {
    const made = { ...row, records: [record], abouts: new Set([row.about]) };
    section.rows.set(like, made);
    section.last = made;
    section.list.append(element("li", "", draw(made)));
  }
  if (row.failed) news.push(`error: ${row.title}`);
}

function begin(key, record) {
  const script = record.script ?? "";
  const heading = element("h2", "", element("span", "script", script ? `${script}.py` : "the lab"));
  if (scripts[script]) heading.append(element("span", "about", scripts[script]));
  heading.append(element("time", "", clock(record.time)));
  section = { key, rows: new Map(), last: null, step: "", list: element("ol", "") };
  page("story").append(element("section", "", heading, section.list));
  if (script) news.push(script.replaceAll("_", " "));
}

// <details> and <summary> are what the keyboard and screen readers know already.
function draw(row) {
  row.element = element("details", row.mood);
  const summary = element("summary", row.to === undefined ? "note" : "");
  row.label = element("span", "label");
  summary.append(row.label);
  if (row.to !== undefined) {
    const columns = `${2 * row.from + 2} / ${2 * row.to + 2}`;
    const arrow = element("span", "arrow", element("span", "there"), element("span", "back"));
    arrow.style.gridColumn = columns;
    row.label.style.gridColumnStart = 2 * row.from + 2;
    summary.append(arrow);
  }
  row.element.append(summary);
  row.element.addEventListener("toggle", () => row.element.open && fill(row));
  label(row);
  return row.element;
}

function label(row) {
  const lanes = row.to === undefined ? "" : element("span", "unseen", `${LANES[row.from]} to ${LANES[row.to]}: `);
  const abouts = [...row.abouts].filter(Boolean);
  const more = abouts.length > 1 ? ` and ${abouts.length - 1} more` : "";
  row.label.replaceChildren(
    lanes,
    element("strong", "", row.title),
    row.records.length > 1 ? element("span", "times", `×${row.records.length}`) : "",
    row.padlock ? icon(row.padlock, row.padlock === "locked" ? "verified" : "not verified") : "",
    row.status ? element("span", "status", row.status) : "",
    abouts.length ? element("span", "about", abouts[0] + more) : "",
  );
}

function clock(time) {
  const moment = new Date(time);
  return Number.isNaN(moment.valueOf()) ? "" : moment.toLocaleTimeString("en-GB");
}


// What opens below a row.

function fill(row) {
  const { step = "", source } = row.records[0];
  const meaning = own(MEANING, row.meaning) ?? {};
  // A step's heading may begin with the domain, or end with the version, that it is about.
  const topics = [meaning.topic, row.meaning, String(step).replace(/^.*: | \d{4}$/g, "")];
  const words = meaning.words ?? topics.map((topic) => own(explanations, topic)).find(Boolean);
  const described = meaning.source ?? source;
  const parts = [];
  if (words) parts.push(element("p", "meaning", words));
  if (described) parts.push(element("p", "source", ...withLinks(described)));
  const shown = row.records.slice(0, MOST_SHOWN);
  parts.push(...shown.map((record) => exchange(record, row)));
  if (row.records.length > shown.length) parts.push(element("p", "", `… and ${row.records.length - shown.length} more like these`));
  row.element.querySelector(".opened")?.remove();
  row.element.append(element("div", "opened", ...parts));
}

function withLinks(source) {
  return source.split(", ").flatMap((part, index) => {
    const [, number, place] = /^RFC (\d+)(?: section ([\d.]+))?/.exec(part) ?? [];
    if (!number) return [index ? ", " : "", part];
    const link = element("a", "", part);
    link.href = `https://www.rfc-editor.org/rfc/rfc${number}${place ? `#section-${place}` : ""}`;
    link.rel = "noreferrer";
    return [index ? ", " : "", link];
  });
}

function exchange(record, row) {
  if (record.kind === "wrote" || row.failed) return "";
  if (!record.sent) return element("div", "exchange", block("record", record));
  const took = record.seconds === undefined ? "" : ` · ${Math.round(record.seconds * 1000)} ms`;
  return element(
    "div", "exchange",
    element("p", "url", element("strong", "", record.method), ` ${record.url} `, element("span", "quiet", `${clock(record.time)}${took}`)),
    element("div", "sides", side("→ sent", record.sent), side(`← ${record.status}`, record.received)),
  );
}

function side(title, values) {
  const blocks = Object.entries(isObject(values) ? values : {}).map(([name, value]) => block(name, value));
  return element("div", "side", element("h3", "", title), ...(blocks.length ? blocks : [element("p", "quiet", "nothing")]));
}

function block(name, value) {
  const lines = Array.isArray(value) && value.every((one) => typeof one === "string") ? value.join("\n") : value;
  const shown = typeof lines === "string" ? lines : JSON.stringify(shortened(decoded(value)), null, 2);
  return element("div", "block", element("h4", "", name), element("pre", "", shown));
}

// A JWS inside a payload (keyChange, external accounts) holds its parts in base64url, as RFC 7515 wants it.
function decoded(value) {
  if (Array.isArray(value)) return value.map(decoded);
  if (!isObject(value)) return value;
  const isJws = ["protected", "payload", "signature"].every((name) => typeof value[name] === "string");
  return Object.fromEntries(Object.entries(value).map(([name, member]) =>
    [name, isJws && name !== "signature" ? fromBase64url(member) : decoded(member)]));
}

function fromBase64url(encoded) {
  try {
    const octets = Uint8Array.from(atob(encoded.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(octets));
  } catch {
    return encoded;
  }
}

function shortened(value) {
  if (Array.isArray(value)) return value.map(shortened);
  if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, shortened(member)]));
  const isLong = typeof value === "string" && value.length > 160 && !value.startsWith("https://");
  return isLong ? `${value.slice(0, 64)}…${value.slice(-8)} (${value.length} characters)` : value;
}


// The state of the world.

let world = {};

function drawWorld() {
  const order = acme.order;
  panel("Account", acme.account && [entry(ending(acme.account.url), acme.account.status)]);
  panel("Order", order && [entry(ending(order.url), order.status), element("p", "names", order.names)]);
  panel("Authorizations", acme.authorizations.size && [...acme.authorizations].map(([name, status]) => entry(name, status)));
  panel("DNS records", list(world.zones).length && world.zones.map((zone) => element(
    "div", "zone", element("h3", "", zone.zone), ...zone.records.map(zoneRecord))));
  panel("Certificates", list(world.certificates).length && world.certificates.map((certificate) => element(
    "div", certificate.current ? "current" : "",
    entry(certificate.serial, certificate.status),
    element("p", "names", `${certificate.current ? "in use; " : ""}until ${certificate.until}; ${list(certificate.names).join(", ")}`),
  )));
  panel("Edges", list(world.edges).length && world.edges.map((edge) => element(
    "div", `edge ${edge.locked ? "good" : "bad"}`,
    icon(edge.locked ? "locked" : "open", edge.locked ? "verified" : "not verified"),
    element("span", "", element("strong", "", edge.domain), element("span", "names", edge.words)),
  )));
}

// A record is marked until the next change when it comes, and struck through for a while when it is gone.
let newRecords = new Set();

const recordsOf = (one) => list(one.zones).flatMap((zone) => zone.records.map((record) => record.id));

function zoneRecord(record) {
  const isNew = newRecords.has(record.id);
  const isProof = record.type === "TXT" && record.name.startsWith("_acme-challenge");
  const words = [element("strong", "", `${record.type} ${record.name}`), ` ${record.value}`];
  const gone = record.gone ? [element("del", "", ...words), " gone"] : words;
  return element("p", `record ${isProof ? "proof" : ""} ${isNew ? "new" : ""} ${record.gone ? "gone" : ""}`, ...gone);
}

const panels = new Map();

for (const title of ["Faults", "Account", "Order", "Authorizations", "Certificates", "Edges", "DNS records"]) {
  const made = element("details", "panel", element("summary", "", element("h2", "", title)), element("div", ""));
  made.open = title !== "Faults" && matchMedia("(min-width: 60rem)").matches;
  made.hidden = true;
  panels.set(title, made);
  document.querySelector("aside").append(made);
}

function panel(title, content) {
  const made = panels.get(title);
  made.hidden = !content;
  // Not while nothing changes: somebody may be reading, or marking, it.
  const drawn = element("div", "", ...(content || []));
  if (drawn.innerHTML !== made.lastChild.innerHTML) made.lastChild.replaceWith(drawn);
}

function entry(name, status) {
  return element("p", "entry", element("span", "", name), element("span", `pill ${MOODS[String(status).toLowerCase()] ?? "note"}`, String(status)));
}

function ending(url) {
  const last = String(url).split("/").at(-1);
  return last.length > 20 ? `…${last.slice(-12)}` : last;
}


// The faults: which are on, and a form to switch one on. NAME[=VALUE][@WHERE][*COUNT | %CHANCE], as lab/faults has it.

function option(value, label = value) {
  const made = element("option", "", label);
  made.value = value;
  return made;
}

function field(label, control) {
  return element("label", "", `${label} `, control);
}

function makeFaults(parts) {
  const name = element("select", "", ...parts.map((part) => {
    const group = element("optgroup", "", ...part.faults.map((fault) => option(fault.name)));
    group.label = part.name;
    return group;
  }));
  const value = element("input", "");
  Object.assign(value, { type: "number", min: 0, step: "any" });
  const where = element("select", "");
  const often = element("select", "", option("", "always"), option("*1", "once"), option("*3", "three times"), option("%50", "half of the time"), option("%10", "one time in ten"));
  const description = element("p", "quiet");
  const form = element("form", "", field("Fault", name), description, field("Where", where), field("How often", often), field("Value", value), element("button", "", "Switch on"));
  const choose = () => {
    const part = parts.find((one) => one.faults.some((fault) => fault.name === name.value));
    description.textContent = `${part.faults.find((fault) => fault.name === name.value).description}.`;
    where.replaceChildren(option("", "where it usually is"), ...part.where.map((place) => option(place)));
  };
  name.addEventListener("change", choose);
  choose();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [amount, place] = [value.value && `=${value.value}`, where.value && `@${where.value}`];
    switchFault({ on: name.value + amount + place + often.value });
  });
  const active = element("ul", "");
  active.id = "active";
  const refused = element("p", "bad");
  refused.id = "refused";
  refused.setAttribute("role", "alert");
  panel("Faults", [active, form, refused]);
}

async function switchFault(wanted) {
  const headers = { "Content-Type": "application/json", "X-Token": document.querySelector("meta[name=token]").content };
  try {
    const response = await fetch("faults", { method: "POST", headers, body: JSON.stringify(wanted) });
    const told = await response.json();
    page("refused").textContent = told.error ?? "";
    if (told.active) drawFaults(told.active);
  } catch {
    page("refused").textContent = "the lab does not answer";
  }
}

function drawFaults(active) {
  const made = active.map((fault) => {
    const button = element("button", "", "Off");
    button.setAttribute("aria-label", `Switch ${fault} off`);
    button.addEventListener("click", () => switchFault({ off: fault.split(/[=@*%]/)[0] }));
    return element("li", "entry", element("span", "bad", fault), button);
  });
  // Not while nothing changes: the focus may be on one of the buttons.
  if (page("active").textContent !== made.map((item) => item.textContent).join("")) page("active").replaceChildren(...made);
  panels.get("Faults").querySelector("h2").textContent = active.length ? `Faults: ${active.length} on` : "Faults";
}


// The lab's server sends what happens. When the connection breaks, the browser comes back by itself.

function connect() {
  const events = new EventSource("events");
  let epoch = "";
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("hello", (told) => {
    // Another lab than before: what was is gone, and so is the token.
    if (epoch && epoch !== told.epoch) location.reload();
    if (!epoch) makeFaults(told.parts);
    ({ epoch, scripts, explanations } = told);
    page("connection").textContent = "live";
  });
  on("records", (records) => {
    const inSight = !page("story").lastChild || page("story").lastChild.getBoundingClientRect().bottom < innerHeight + 60;
    show(records);
    // Whoever reads what was before is not to be dragged away from it.
    const follow = inSight && !document.querySelector("#story details[open]");
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
    page("newest").hidden = follow;
  });
  on("world", (told) => {
    const before = new Set(recordsOf(world));
    newRecords = new Set(before.size ? recordsOf(told).filter((id) => !before.has(id)) : []);
    world = told;
    drawWorld();
    drawFaults(world.faults);
  });
  events.addEventListener("error", () => { page("connection").textContent = "the lab does not answer; is it still up?"; });
}

page("newest").addEventListener("click", () => {
  page("newest").hidden = true;
  scrollTo(0, document.documentElement.scrollHeight);
});


// The frame: the lanes' names, news for screen readers, and the page's source.

let news = [];

function show(records) {
  news = [];
  records.forEach(add);
  // Each script that begins and each error, and of many at once the last: a screen reader is not to read for minutes.
  if (news.length) page("news").textContent = news.slice(-2).join(", ");
  page("empty").hidden = count > 0;
  drawWorld();
}

page("lanes").append(...LANES.map((name) => element("span", "", name)));
const picture = page("picture");
if (picture) {
  const told = JSON.parse(picture.textContent);
  ({ scripts, explanations, world } = told);
  page("connection").textContent = `a report of ${told.title}`;
  document.title = `${told.title} – ACME, call by call`;
  show(told.records);
} else {
  connect();
}
