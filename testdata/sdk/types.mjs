// Prints as JSON what the types in formats.ts allow in a request of each format: the names of its top-level members, the
// strings that those may have, the values of `type` at each place where an object has one, and the places where a model
// is named. A place is the path of members to it, from the top or from the nearest object around it that has a `type`,
// whose value stands for it then: `messages[].content[]`, `tool_result.content[]`.
import { fileURLToPath } from "node:url";
import ts from "typescript";

const source = fileURLToPath(new URL("formats.ts", import.meta.url));
const program = ts.createProgram([source], {
  module: ts.ModuleKind.NodeNext,
  target: ts.ScriptTarget.ES2022,
  strict: true,
  skipLibCheck: true,
});
const checker = program.getTypeChecker();
for (const { messageText } of ts.getPreEmitDiagnostics(program)) {
  throw new Error(ts.flattenDiagnosticMessageText(messageText, "\n")); // without the SDKs, every type is any
}

// The types of a union, or the one type, without null and undefined.
function variants(type) {
  const types = type.isUnion() ? type.types : [type];
  return types.filter((t) => !(t.flags & (ts.TypeFlags.Null | ts.TypeFlags.Undefined)));
}

function membersOf(type) {
  if (!(type.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection))) {
    return [];
  }
  return checker.getPropertiesOfType(type).map((p) => [p.name, checker.getTypeOfSymbol(p)]);
}

function literals(type) {
  return variants(type).flatMap((t) => (t.isStringLiteral() ? [t.value] : []));
}

class Format {
  members = new Set();
  values = {}; // by the member
  types = {}; // by the place
  models = new Set();
  #seen = new Set();

  constructor(top) {
    for (const variant of variants(top)) {
      for (const [name, type] of membersOf(variant)) {
        this.members.add(name);
        const elements = variants(type).flatMap((t) => checker.getIndexTypeOfType(t, ts.IndexKind.Number) ?? []);
        for (const value of [type, ...elements].flatMap(literals)) {
          (this.values[name] ??= new Set()).add(value);
        }
        this.#walk(name, type);
      }
    }
  }

  #walk(place, type) {
    for (const variant of variants(type)) {
      const key = place + " " + variant.id;
      if (this.#seen.has(key)) {
        continue;
      }
      this.#seen.add(key);
      const element = checker.getIndexTypeOfType(variant, ts.IndexKind.Number);
      if (element) {
        if (variant.flags & ts.TypeFlags.Object) {
          this.#walk(place + "[]", element);
        }
        continue;
      }
      const members = membersOf(variant);
      const kinds = literals(members.find(([name]) => name === "type")?.[1] ?? checker.getNeverType());
      for (const kind of kinds) {
        (this.types[place] ??= new Set()).add(kind);
      }
      for (const [name, member] of members) {
        if (/^models?$/.test(name)) {
          this.models.add([kinds[0] ?? place, name].join("."));
        }
        for (const around of kinds.length ? kinds : [place]) {
          this.#walk(around + "." + name, member);
        }
      }
      const values = checker.getIndexTypeOfType(variant, ts.IndexKind.String);
      if (values) {
        this.#walk(place + ".*", values);
      }
    }
  }
}

const formats = program.getSourceFile(source).statements.find(ts.isTypeAliasDeclaration);
const result = {};
for (const [name, type] of membersOf(checker.getTypeAtLocation(formats.name))) {
  result[name] = new Format(type);
}
console.log(JSON.stringify(result, (_, value) => (value instanceof Set ? [...value].sort() : value), 2));
