// Claude Code under its Agent SDK, whose host offers the model a tool under the tool's own name. One turn; prints the SDK's messages, line by line JSON.
// usage: agent_sdk.mjs CLAUDE GATEWAY MODEL WORDS        (from a folder with the SDK)

import { query } from "@anthropic-ai/claude-agent-sdk";
import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [pathToClaudeCodeExecutable, gateway, model, prompt] = process.argv.slice(2);
const inputSchema = { type: "object", properties: { query: { type: "string" } }, required: ["query"] };
const instance = new Server({ name: "web", version: "1" }, { capabilities: { tools: {} } });
instance.setRequestHandler(ListToolsRequestSchema, () => ({ tools: [{ name: "search", description: "Search the web", inputSchema }] }));
instance.setRequestHandler(CallToolRequestSchema, () => ({ content: [{ type: "text", text: '{"result": "river lamp"}' }] }));

const options = {
  pathToClaudeCodeExecutable,
  model,
  systemPrompt: "You are a helpful assistant.",
  thinking: { type: "disabled" },
  tools: [],
  mcpServers: { web: { type: "sdk", name: "web", instance } },
  allowedTools: ["mcp__web__search"],
  extraArgs: { bare: null },
  env: { ...process.env, ANTHROPIC_BASE_URL: gateway, ANTHROPIC_API_KEY: "none", CLAUDE_AGENT_SDK_MCP_NO_PREFIX: "1" },
};
for await (const message of query({ prompt, options })) console.log(JSON.stringify(message));
