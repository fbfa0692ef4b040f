// Prints as JSON what the types of the official SDKs allow in a request of each format: the names of the top-level
// members, the values of those that are an enumeration, the values of `type` at each place where an object has one, and
// the places where a model is named. TestIntegrationKnownTypes compares it with tollgate's tables.
//
// A place is the path of members from the top or from the nearest object around it that has a `type`, which stands for
// its path: `messages[].content[]`, `tool_result.content[]`.
import type Anthropic from "@anthropic-ai/sdk";
import type OpenAI from "openai";
import { fileURLToPath } from "node:url";
import ts from "typescript";

// The types of the requests, each by its format.
export type Formats = {
  chat: OpenAI.ChatCompletionCreateParams;
  messages: Anthropic.MessageCreateParams;
  messagesBeta: Anthropic.Beta.MessageCreateParams;
};

const source = fileURLToPath(import.meta.url).replace(/\.js$/, ".ts");
const program = ts.createProgram([source], { module: ts.ModuleKind.NodeNext, strict: true, skipLibCheck: true });
const checker = program.getTypeChecker();

// The types of a union, or the one type, without null and undefined.
function variants(type: ts.Type): ts.Type[] {
  const types = type.isUnion() ? type.types : [type];
  return types.filter((t) => !(t.flags & (ts.TypeFlags.Null | ts.TypeFlags.Undefined)));
}

function membersOf(type: ts.Type): [string, ts.Type][] {
  if (!(type.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection))) {
    return [];
  }
  return checker.getPropertiesOfType(type).map((p) => [p.name, checker.getTypeOfSymbol(p)]);
}

function literals(type: ts.Type): string[] {
  return variants(type).flatMap((t) => (t.isStringLiteral() ? [t.value] : []));
}

class Format {
  members = new Set<string>();
  values: Record<string, Set<string>> = {};
  types: Record<string, Set<string>> = {};
  models = new Set<string>();
  private seen = new Set<string>();

  constructor(top: ts.Type) {
    for (const variant of variants(top)) {
      for (const [name, type] of membersOf(variant)) {
        this.members.add(name);
        const elements = variants(type).flatMap((t) => checker.getIndexTypeOfType(t, ts.IndexKind.Number) ?? []);
        for (const value of [type, ...elements].flatMap(literals)) {
          (this.values[name] ??= new Set()).add(value);
        }
        this.walk(name, type);
      }
    }
  }

  private walk(place: string, type: ts.Type) {
    for (const variant of variants(type)) {
      const key = place + " " + (variant as ts.Type & { id: number }).id;
      if (this.seen.has(key)) {
        continue;
      }
      this.seen.add(key);
      const element = checker.getIndexTypeOfType(variant, ts.IndexKind.Number);
      if (element) {
        if (variant.flags & ts.TypeFlags.Object) {
          this.walk(place + "[]", element);
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
          this.walk(around + "." + name, member);
        }
      }
      const values = checker.getIndexTypeOfType(variant, ts.IndexKind.String);
      if (values) {
        this.walk(place + ".*", values);
      }
    }
  }
}

const file = program.getSourceFile(source)!;
const formats = file.statements.find(ts.isTypeAliasDeclaration)!;
const result: Record<string, Format> = {};
for (const [name, type] of membersOf(checker.getTypeAtLocation(formats.name))) {
  result[name] = new Format(type);
}
const sorted = (key: string, value: unknown) => {
  if (key === "seen") {
    return undefined;
  }
  return value instanceof Set ? [...value].sort() : value;
};
console.log(JSON.stringify(result, sorted, 2));
