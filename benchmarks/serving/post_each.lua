-- Posts the files named in BODIES, a line each, one after the other and around again.
local bodies = {}
for path in io.lines(os.getenv("BODIES")) do
  local file = io.open(path, "rb")
  bodies[#bodies + 1] = file:read("*a")
  file:close()
end
local headers = { ["Content-Type"] = os.getenv("CONTENT_TYPE") }
local following = 0

function request()
  following = following % #bodies + 1
  return wrk.format("POST", nil, headers, bodies[following])
end
