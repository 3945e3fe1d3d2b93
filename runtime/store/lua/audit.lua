-- What the scripts of people share, behind common.lua: the audit, and what stands in a key's place.

local AUDIT_ENTRIES = 10000  -- a guess: months of what people order
local MAX_TOLD_BYTES = 4096

local function write_audit(by, reason, lines)
  local told = table.concat(lines, '\n')
  if #told > MAX_TOLD_BYTES then told = string.sub(told, 1, MAX_TOLD_BYTES) .. '…' end
  redis.call('XADD', AUDIT, 'MAXLEN', '~', AUDIT_ENTRIES, '*', 'at', ms(now_ms()), 'by', by, 'reason', reason, 'what', told)
end

local function trouble_with_place(key, wanted)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= wanted then return 'WRONGTYPE ' .. key .. ' must be a ' .. wanted .. ', and is a ' .. kind end
end
